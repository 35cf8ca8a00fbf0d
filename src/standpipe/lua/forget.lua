-- Removes the consumers of a group that have not been seen for long and hold nothing.
--
-- Checked and removed in one step: XGROUP DELCONSUMER drops what a consumer has pending by then,
-- and it would never be delivered again (https://redis.io/docs/latest/commands/xgroup-delconsumer/).
-- One that is alive after all is created again by its next read.
--
-- KEYS[1]  the shard
-- ARGV[1]  group
-- ARGV[2]  for how long a consumer must not have asked for anything, ms
-- ARGV[3]  how many to remove, at most
--
-- Returns  the names of those that were removed; of a stream that is not there, none
-- Cost     O(consumers of the group). XINFO CONSUMERS, and XGROUP DELCONSUMER for each.

local idle_min, count_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local removed = {}
local found = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if found.err then
  -- Without the stream there is nobody to remove: it was deleted, or all that it held was settled.
  if redis.call('EXISTS', KEYS[1]) == 0 then return removed end
  return found
end
for _, row in ipairs(found) do
  local consumer = {}
  for i = 1, #row, 2 do consumer[row[i]] = row[i + 1] end
  if consumer.pending == 0 and consumer.idle >= idle_min and #removed < count_max then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed[#removed + 1] = consumer.name
  end
end
return removed
