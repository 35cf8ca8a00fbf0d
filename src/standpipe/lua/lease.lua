-- Takes, renews, gives back or looks at the lease of a shard: who of a group may read it now.
--
-- KEYS[1]  the lease (a hash): owner, fence
-- KEYS[2]  exists while it lasts (a string that expires)
-- ARGV[1]  what: 'take' (if it is free), 'renew', 'release', 'look'
-- ARGV[2]  consumer
-- ARGV[3]  the fence that the consumer has, for 'renew' and 'release'
-- ARGV[4]  for how long it is taken or renewed, ms
--
-- Returns  {owner, fence, ms until it ends}, as it stands afterwards; the owner of a free one is ''.
-- Cost     O(1). HMGET, PTTL; HDEL, HSET and SET, or PEXPIRE, or HDEL and DEL.
--
-- The fence counts the owners and never goes back, so the hash does not expire. Who has the last one
-- may renew it even late: nobody has taken it meanwhile. Renewing is a PEXPIRE, which a server out
-- of memory does not refuse: it needs its workers then. Taking writes more, which such a server only
-- lets a script do that has written before; HDEL, of nothing, it never refuses.

local what, consumer, ms = ARGV[1], ARGV[2], ARGV[4]
local row = redis.call('HMGET', KEYS[1], 'owner', 'fence')
local owner, fence = row[1] or '', tonumber(row[2] or 0)
local left = math.max(0, redis.call('PTTL', KEYS[2]))
local is_mine = owner == consumer and string.format('%d', fence) == ARGV[3]

if what == 'take' then
  -- One of the same name has died, or the reply that told us so was lost.
  if owner == consumer or left == 0 then
    owner, fence, left = consumer, fence + 1, tonumber(ms)
    redis.call('HDEL', KEYS[1], 'none')
    redis.call('HSET', KEYS[1], 'owner', owner, 'fence', string.format('%d', fence))
    redis.call('SET', KEYS[2], 1, 'PX', ms)
  end
elseif what == 'renew' and is_mine then
  if redis.call('PEXPIRE', KEYS[2], ms) == 0 then redis.call('SET', KEYS[2], 1, 'PX', ms) end
  left = tonumber(ms)
elseif what == 'release' and is_mine then
  redis.call('HDEL', KEYS[1], 'owner')
  redis.call('DEL', KEYS[2])
  left = 0
end
if left == 0 then return {'', fence, 0} end
return {owner, fence, left}
