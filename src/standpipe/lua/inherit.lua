-- Takes over what is pending on a shard, whoever holds it, for the owner of its lease.
--
-- KEYS[1]  the shard
-- KEYS[2]  its lease for the group
-- ARGV[1]  group
-- ARGV[2]  consumer
-- ARGV[3]  the fence that the consumer has
-- ARGV[4]  where to begin: '-', or '(' and the last entry ID of the call before
-- ARGV[5]  how many entries at most
--
-- Returns  {entry IDs, ascending, the consumer's now;
--           how many of them were another consumer's;
--           entry IDs that were deleted from the stream: off the list now (since Redis 7)};
--          nil if the lease is not the consumer's any more: then nothing was done.
-- Cost     O(log(pending) + entries). HMGET, XPENDING, XCLAIM.
--
-- With JUSTID it is no delivery: what only waited behind an entry that killed its worker must not be
-- taken for deadly.

local group, consumer, fence, start, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('HMGET', KEYS[2], 'owner', 'fence')
if held[1] ~= consumer or held[2] ~= fence then return false end
local page = redis.call('XPENDING', KEYS[1], group, start, '+', count)
if #page == 0 then return {{}, 0, {}} end
local ids, others = {}, 0
for _, row in ipairs(page) do
  ids[#ids + 1] = row[1]
  if row[2] ~= consumer then others = others + 1 end
end
local command = {'XCLAIM', KEYS[1], group, consumer, 0, unpack(ids)}
command[#command + 1] = 'JUSTID'
local there, deleted = {}, {}
for _, id in ipairs(redis.call(unpack(command))) do there[id] = true end
local mine = {}
for _, id in ipairs(ids) do
  local list = there[id] and mine or deleted
  list[#list + 1] = id
end
return {mine, others, deleted}
