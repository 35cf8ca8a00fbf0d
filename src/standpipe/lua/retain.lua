-- Lets entries of a shard go that its limits do not keep: those that every group has acknowledged and
-- the archive has; in a ring also others, which are counted.
--
-- What may go is looked up in the same step in which it goes, so a group that is created, moved or
-- given entries meanwhile is never passed over.
--
-- KEYS[1]  the shard (a stream)
-- KEYS[2]  how many entries were trimmed (a number)
-- KEYS[3]  how many events each group has lost (a hash)
-- KEYS[4]  the archive's cursor: the entry ID up to which all is archived; absent: there is no archive
-- ARGV[1]  block, or ring
-- ARGV[2]  how old an entry may be, ms; 0: any age
-- ARGV[3]  entries and bytes up to which the shard is filled: '<entries> <bytes>'; -: no limit
-- ARGV[4]  entries and bytes that it may have; in between there is room for producers
-- ARGV[5]  entries that go in this step at most
-- ARGV[6]  and bytes, as far as entries are of the same size
-- ARGV[7]  of these entries, those that are read to be counted, at most
-- ARGV[8]  'trim', or 'look' to change nothing
--
-- Returns  {entries, bytes, entries that were let go, others that a ring let go (see lose.lua),
--           1 if there is more to do now, the ID before which all may go ('' if nothing holds it),
--           the ID before which all is too old ('' if nothing can be)}; all as it was before.
-- Cost     O(groups), and what goes: XLEN, MEMORY USAGE (it samples), XINFO GROUPS, per group
--          XPENDING (its summary), TIME; XTRIM, XRANGE of up to 100 entries.
-- Memory   A server without memory refuses what may grow, but neither XTRIM nor what a script does
--          after its first write: so an XTRIM always comes before the counting.

local key, trimmed_key, lost_key, archived_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local MAX_ID = '18446744073709551615-18446744073709551615'
-- Entries of a node of the stream by default: what XTRIM with ~ may leave over.
local NODE = 100

-- include lose

local function next_to(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  -- Beyond what a double counts exactly that one entry stays.
  return #seq > 15 and id or ms .. '-' .. string.format('%d', seq + 1)
end

local length = redis.call('XLEN', key)
if length == 0 then return {0, redis.call('MEMORY', 'USAGE', key) or 0, 0, 0, 0, '', ''} end
local used = redis.call('MEMORY', 'USAGE', key)

local safe = nil
local function keep_from(id)
  if not safe or after(safe, id) then safe = id end
end
for _, pairs_of in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local group = {}
  for i = 1, #pairs_of, 2 do group[pairs_of[i]] = pairs_of[i + 1] end
  keep_from(next_to(group['last-delivered-id']))
  -- Not always before the last delivered: a group may have been moved back.
  if group.pending > 0 then keep_from(redis.call('XPENDING', key, group.name)[2]) end
end
local cursor = redis.call('GET', archived_key)
if cursor then
  -- What is no entry ID holds everything: better too much is kept than too little.
  keep_from(string.find(cursor, '^%d+-%d+$') and next_to(cursor) or '0-0')
end

local old = nil
if tonumber(ARGV[2]) > 0 then
  local now = redis.call('TIME')
  local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) - tonumber(ARGV[2])
  if ms > 0 then old = string.format('%.0f-0', ms) end
end

-- How many entries are too many.
local function excess(limits)
  local entries_max, bytes_max = string.match(limits, '^(%S+) (%S+)$')
  entries_max, bytes_max = tonumber(entries_max), tonumber(bytes_max)
  local found = entries_max and length - entries_max or 0
  if bytes_max and used > bytes_max then
    -- In proportion: entries are of about the same size, and the next look corrects it.
    found = math.max(found, length - math.floor(length * bytes_max / used))
  end
  return math.max(found, 0)
end

-- Freeing large entries takes the server longer than counting small ones.
local room = math.min(tonumber(ARGV[5]), math.max(1, math.floor(length * ARGV[6] / used)))
local removed, lost, is_more = 0, 0, false
if ARGV[8] == 'trim' then
  local function let_go(id, count)
    count = math.min(count, room - removed)
    if count < 1 then return end
    local gone = redis.call('XTRIM', key, 'MINID', '~', id, 'LIMIT', count)
    -- The rest of the node in which the ID lies: a slow stream would keep it for long, and a short
    -- one is a single node.
    local left = math.min(count - gone, NODE)
    if left > 0 then
      local rows = #redis.call('XRANGE', key, '-', '(' .. id, 'COUNT', left)
      if rows > 0 then
        gone = gone + redis.call('XTRIM', key, 'MAXLEN', redis.call('XLEN', key) - rows)
      end
      is_more = is_more or rows == NODE
    end
    removed = removed + gone
  end

  local free = safe or MAX_ID
  if old then let_go(after(free, old) and old or free, room) end
  let_go(free, excess(ARGV[3]) - removed)
  if removed > 0 then redis.call('INCRBY', trimmed_key, removed) end

  if ARGV[1] == 'ring' then
    local reads = math.min(tonumber(ARGV[7]), room - removed)
    if old then lost = lose('(' .. old, reads) end
    lost = lost + lose('+', math.min(excess(ARGV[4]) - removed - lost, reads - lost))
    is_more = is_more or (lost > 0 and lost == reads)
  end
end
is_more = is_more or (removed > 0 and removed >= room)
return {length, used, removed, lost, is_more and 1 or 0, safe or '', old or ''}
