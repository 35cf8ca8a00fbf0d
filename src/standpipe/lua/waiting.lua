-- Counts what is requeued for a group on a shard and not settled yet.
--
-- KEYS[1]  what is requeued for the group on the shard (a stream)
--
-- Returns  how many entries: those that no member was given yet, and those that are pending. What is
--          settled may still stand in the stream, so that its length is no answer.
-- Cost     O(entries that no member was given yet), which somebody has requeued in the last seconds
--          or for a group without workers. EXISTS, XINFO GROUPS, XRANGE per 1000.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local group = redis.call('XINFO', 'GROUPS', KEYS[1])[1]
if not group then return redis.call('XLEN', KEYS[1]) end
local found = {}
for i = 1, #group, 2 do found[group[i]] = group[i + 1] end
local count, start = found['pending'], '(' .. found['last-delivered-id']
repeat
  local page = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 1000)
  if #page > 0 then start = '(' .. page[#page][1] end
  count = count + #page
until #page < 1000
return count
