-- Puts dead letters of one group back for that group alone.
--
-- KEYS[1]   the dead letters of a shard (a stream)
-- KEYS[2]   what is requeued for the group on this shard (a stream)
-- ARGV[1]   group
-- ARGV[2]   how often a letter may be requeued at most, '' for no limit
-- ARGV[3..] entry IDs of letters
--
-- Returns  per letter: 'requeued', 'limit' (requeued so often already; it stays), 'unusable' (no
--          letter of the group, or without an event; it stays) or 'gone'.
-- Cost     O(log(letters)) per letter. XRANGE, XADD, XDEL each.
-- Atomic   per letter, whatever fails: it is added before it is deleted, and nothing else runs in
--          between. Refused at one letter (memory), the script has moved those before it.

local group, limit = ARGV[1], tonumber(ARGV[2])
local statuses = {}
for i = 3, #ARGV do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])
  local letter, fields = {}, found[1] and found[1][2] or {}
  for at = 1, #fields, 2 do letter[fields[at]] = fields[at + 1] end
  local kind = letter.d and 'd' or 'raw'
  local requeues = tonumber(letter.requeues or 0) or 0
  if #found == 0 then
    statuses[#statuses + 1] = 'gone'
  elseif letter.group ~= group or not letter.id or not letter[kind] then
    statuses[#statuses + 1] = 'unusable'
  elseif limit and requeues >= limit then
    statuses[#statuses + 1] = 'limit'
  else
    local before = (tonumber(letter.deliveries or 0) or 0)
      + (tonumber(letter.deliveries_before or 0) or 0)
    redis.call('XADD', KEYS[2], '*', 'id', letter.id, 'requeues', string.format('%d', requeues + 1),
      'deliveries_before', string.format('%d', before), kind, letter[kind])
    redis.call('XDEL', KEYS[1], ARGV[i])
    statuses[#statuses + 1] = 'requeued'
  end
end
return statuses
