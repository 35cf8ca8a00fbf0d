-- Sets a shard's archive cursor, for who archives the shard by lease, and renews the lease.
--
-- KEYS[1]  the lease (a hash): owner, fence
-- KEYS[2]  exists while it lasts (a string that expires)
-- KEYS[3]  the cursor (a string): the entry ID up to which all is archived
-- ARGV[1]  owner
-- ARGV[2]  the fence that the owner has
-- ARGV[3]  for how long the lease is renewed, ms
-- ARGV[4]  the entry ID
-- ARGV[5]  '1': the cursor may be new; '0': it has to be there
--
-- Returns  1: done; 0: the lease is another's, or was lost; -1: there is no cursor.
-- Cost     O(1). HMGET, PEXPIRE, EXISTS, SET.
--
-- A server out of memory would refuse the SET, and nothing could be trimmed any more. It does not
-- in a script that has written already, and PEXPIRE it never refuses: it comes first.

local row = redis.call('HMGET', KEYS[1], 'owner', 'fence')
if row[1] ~= ARGV[1] or row[2] ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], 1, 'PX', ARGV[3]) end
if ARGV[5] == '0' and redis.call('EXISTS', KEYS[3]) == 0 then return -1 end
redis.call('SET', KEYS[3], ARGV[4])
return 1
