-- Reads what is requeued for a group, and forgets what of it is settled.
--
-- KEYS[1]  what is requeued for the group on a shard (a stream)
-- ARGV[1]  group
-- ARGV[2]  consumer
-- ARGV[3]  how many entries at most
--
-- Returns  the entries that nobody had yet, pending for the consumer now, as XRANGE writes them.
-- Cost     O(entries returned or forgotten). XREADGROUP; if nothing is new XPENDING, XTRIM or DEL.
--
-- One step, so that the stream can go when everything in it is settled and never takes along what
-- is requeued at the same moment. Its group is made here: a stream without one is new, or somebody
-- has destroyed the group, and then what is left is delivered again.

local group, consumer, count = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], group, '0')
end
local found = redis.call(
  'XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', KEYS[1], '>')
if found then return found[1][2] end
local pending = redis.call('XPENDING', KEYS[1], group)
if pending[1] == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('XTRIM', KEYS[1], 'MINID', pending[2])
end
return {}
