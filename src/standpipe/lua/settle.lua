-- Acknowledges one entry and keeps those of its events that were given up on, in one step.
--
-- KEYS[1]   the shard
-- KEYS[2]   its dead letters (a stream)
-- ARGV[1]   group
-- ARGV[2]   consumer
-- ARGV[3]   entry ID
-- ARGV[4..] of each dead letter in turn: how many arguments follow for it, then name, value...
--
-- Returns  how many dead letters were added: 0 if the entry is not pending for this consumer,
--          because another one has taken it over; then nothing was done here.
-- Cost     O(log(pending)), O(1) per dead letter. XPENDING, XADD each, XACK.

local group, consumer, id = ARGV[1], ARGV[2], ARGV[3]
if #redis.call('XPENDING', KEYS[1], group, id, id, 1, consumer) == 0 then return 0 end
-- The letters first: a script that fails half-way is not undone, and an entry that was acknowledged
-- without its letters would be lost. Refused here (key of another type, ACL, memory), it stays
-- pending.
local at, added = 4, 0
while at <= #ARGV do
  local stop = at + tonumber(ARGV[at])
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 1, stop))
  at, added = stop + 1, added + 1
end
redis.call('XACK', KEYS[1], group, id)
return added
