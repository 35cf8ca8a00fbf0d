-- Renews what a consumer holds, and nothing that it no longer holds.
--
-- A plain XCLAIM would take an entry back from the consumer that rightly took it over meanwhile.
--
-- KEYS[1]   the shard
-- ARGV[1]   group
-- ARGV[2]   consumer
-- ARGV[3]   delivery count to set, or '' to leave the counts
-- ARGV[4..] entry IDs, ascending
--
-- Returns  {entry IDs that this consumer does not hold (any more),
--           entry IDs that it held and that were deleted from the stream: off the list now (since
--           Redis 7; 6.2 renews them like others)}
-- Cost     O(log(pending) + entries pending between the first and the last ID for this consumer).

local group, consumer, count = ARGV[1], ARGV[2], ARGV[3]
local first, last = ARGV[4], ARGV[#ARGV]
local wanted, total = {}, #ARGV - 3
for i = 4, #ARGV do wanted[ARGV[i]] = true end

local held, cursor = {}, first
while cursor do
  local page = redis.call('XPENDING', KEYS[1], group, cursor, last, 1000, consumer)
  for _, row in ipairs(page) do
    if wanted[row[1]] then
      held[#held + 1] = row[1]
      wanted[row[1]] = nil
    end
  end
  cursor = #page == 1000 and '(' .. page[1000][1] or nil
end

local deleted = {}
for start = 1, #held, 1000 do
  local stop = math.min(start + 999, #held)
  local command = {'XCLAIM', KEYS[1], group, consumer, 0, unpack(held, start, stop)}
  if count ~= '' then
    command[#command + 1] = 'RETRYCOUNT'
    command[#command + 1] = count
  end
  command[#command + 1] = 'JUSTID'
  local there = {}
  for _, id in ipairs(redis.call(unpack(command))) do there[id] = true end
  for i = start, stop do
    if not there[held[i]] then deleted[#deleted + 1] = held[i] end
  end
end

local gone = {}
if #held < total then
  for i = 4, #ARGV do
    if wanted[ARGV[i]] then gone[#gone + 1] = ARGV[i] end
  end
end
return {gone, deleted}
