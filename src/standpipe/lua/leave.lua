-- Gives back what a consumer has pending, and removes it from its group if there is nothing.
--
-- Marked idle, an entry goes to another consumer at its next sweep. XGROUP DELCONSUMER alone would
-- drop the pending entries with the consumer: they would never be delivered again
-- (https://redis.io/docs/latest/commands/xgroup-delconsumer/).
--
-- KEYS[1]  the shard
-- ARGV[1]  group
-- ARGV[2]  consumer
-- ARGV[3]  for how long what is given back is said to have been idle, ms
--
-- Returns  {how many entries were given back: with 0 the consumer is removed,
--           entry IDs that were deleted from the stream: off the list now (since Redis 7)}
-- Cost     O(entries pending for the consumer). XPENDING and XCLAIM per 1000, XGROUP DELCONSUMER.

local group, consumer, idle = ARGV[1], ARGV[2], ARGV[3]
local given, deleted, start = 0, {}, '-'
repeat
  local page = redis.call('XPENDING', KEYS[1], group, start, '+', 1000, consumer)
  if #page > 0 then
    local command = {'XCLAIM', KEYS[1], group, consumer, 0}
    for _, row in ipairs(page) do command[#command + 1] = row[1] end
    for _, word in ipairs({'IDLE', idle, 'JUSTID'}) do command[#command + 1] = word end
    local there = {}
    for _, id in ipairs(redis.call(unpack(command))) do there[id] = true end
    for _, row in ipairs(page) do
      if there[row[1]] then given = given + 1 else deleted[#deleted + 1] = row[1] end
    end
    start = '(' .. page[#page][1]
  end
until #page < 1000

if given == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, consumer) end
return {given, deleted}
