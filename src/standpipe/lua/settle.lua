-- Acknowledges one entry and keeps those of its events that were given up on, in one step.
--
-- KEYS[1]   the shard
-- KEYS[2]   its dead letters (a stream)
-- ARGV[1]   group
-- ARGV[2]   entry ID
-- ARGV[3..] of each dead letter in turn: how many arguments follow for it, then name, value...
--
-- Returns  how many dead letters were added: 0 if the entry was not pending any more, because
--          another consumer has settled it, and then nothing was done here.
-- Cost     O(1) per dead letter. XACK, XADD each.

if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
local at, added = 3, 0
while at <= #ARGV do
  local stop = at + tonumber(ARGV[at])
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 1, stop))
  at, added = stop + 1, added + 1
end
return added
