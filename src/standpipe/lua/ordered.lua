-- Acknowledges and reads for the owner of a shard's lease, and for nobody else.
--
-- A check before the command would not do: a process can be stopped between the two for as long as it
-- takes another one to become the owner. An entry that it then read would be missing there, and later
-- ones would be handled before it.
--
-- KEYS[1]   the shard
-- KEYS[2]   its lease for the group
-- ARGV[1]   group
-- ARGV[2]   consumer
-- ARGV[3]   the fence that the consumer has
-- ARGV[4]   how many new entries to read at most; 0: none
-- ARGV[5..] entry IDs to acknowledge
--
-- Returns  new entries, pending for the consumer now, as XRANGE writes them; nil if the lease is not
--          the consumer's any more: then nothing was done.
-- Cost     O(IDs + entries returned). HMGET, XACK, XREADGROUP.

local group, consumer, fence, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HMGET', KEYS[2], 'owner', 'fence')
if held[1] ~= consumer or held[2] ~= fence then return false end
if #ARGV > 4 then redis.call('XACK', KEYS[1], group, unpack(ARGV, 5)) end
if count == '0' then return {} end
local found = redis.call(
  'XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', KEYS[1], '>')
return found and found[1][2] or {}
