-- Counts entries and the events in them, without sending them.
--
-- KEYS[1]  the shard
-- ARGV[1]  the first entry, as XRANGE takes it
-- ARGV[2]  the last one
-- ARGV[3]  so many entries at most
-- ARGV[4]  'back' to count from the last one backwards, '' from the first one on
--
-- Returns  {entries, events, the ID of the last entry counted or ''}. A block counts the events that
--          its header announces, every other entry one.
-- Cost     O(entries). XRANGE or XREVRANGE, which copies them.

local rows
if ARGV[4] == 'back' then
  rows = redis.call('XREVRANGE', KEYS[1], ARGV[2], ARGV[1], 'COUNT', ARGV[3])
else
  rows = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
end
local events = 0
for _, row in ipairs(rows) do
  local fields, count = row[2], 1
  if #fields == 6 then
    local block = {}
    for i = 1, 6, 2 do block[fields[i]] = fields[i + 1] end
    if block.c and block.d and block.n and string.match(block.n, '^%d+$') then
      count = tonumber(block.n)
    end
  end
  events = events + count
end
return {#rows, events, #rows > 0 and rows[#rows][1] or ''}
