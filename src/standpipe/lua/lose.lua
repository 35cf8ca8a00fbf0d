-- Part of append.lua and retain.lua, which include it: lets the oldest entries of a shard go, read or
-- not, and counts what each group loses by it.
--
-- Expects  KEYS[1], the shard, and in local variables: trimmed_key, how many entries were trimmed (a
--          number); lost_key, how many events were lost (a hash); archived_key, the archive's cursor.
-- Defines  after(a, b): whether one entry ID comes after another.
--          lose(last, count): lets so many entries go, none behind an entry ID; returns how many went.
--
-- A group loses the events of an entry that it has not been given, or has not acknowledged. Counted
-- as 'group:<name>' and, of what is not archived, 'archive'. Pending records stay: who holds such an
-- entry may still finish it, and who takes it over finds that it is gone.
-- Cost     O(count), and the entries' bytes, which are read to count events; XINFO GROUPS, XPENDING
--          per group. Trimmed by MAXLEN, not by MINID: where somebody has deleted entries (XDEL), an
--          exact MINID may leave a node without entries, and the server could not load its own RDB
--          file (https://github.com/redis/redis/issues/15808).

local function after(a, b)
  -- Numbers of 20 digits: a double does not hold them, their text does.
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then return #a_ms > #b_ms or (#a_ms == #b_ms and a_ms > b_ms) end
  return #a_seq > #b_seq or (#a_seq == #b_seq and a_seq > b_seq)
end

local function events_in(fields)
  local field = {}
  for i = 1, #fields, 2 do field[fields[i]] = fields[i + 1] end
  local is_block = #fields == 6 and field.d and (field.c == 'rows1' or field.c == 'arrow1')
  return is_block and tonumber(field.n) or 1
end

local function lose(last, count)
  local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
  local cursor = redis.call('GET', archived_key)
  if count < 1 then return 0 end
  if #groups == 0 and not cursor and last == '+' then
    redis.call('INCRBY', trimmed_key, 0)
    local gone = redis.call('XTRIM', KEYS[1], 'MAXLEN',
      math.max(redis.call('XLEN', KEYS[1]) - count, 0))
    redis.call('INCRBY', trimmed_key, gone)
    return gone
  end
  local rows = redis.call('XRANGE', KEYS[1], '-', last, 'COUNT', count)
  if #rows == 0 then return 0 end
  local losses = {}
  if cursor then
    local lost = 0
    for _, row in ipairs(rows) do
      if after(row[1], cursor) then lost = lost + events_in(row[2]) end
    end
    if lost > 0 then losses.archive = lost end
  end
  for _, pairs_of in ipairs(groups) do
    local group, held, lost = {}, {}, 0
    for i = 1, #pairs_of, 2 do group[pairs_of[i]] = pairs_of[i + 1] end
    if group.pending > 0 then
      local ends = {rows[1][1], rows[#rows][1]}
      for _, row in ipairs(redis.call('XPENDING', KEYS[1], group.name, ends[1], ends[2], 1000000)) do
        held[row[1]] = true
      end
    end
    for _, row in ipairs(rows) do
      if held[row[1]] or after(row[1], group['last-delivered-id']) then
        lost = lost + events_in(row[2])
      end
    end
    if lost > 0 then losses['group:' .. group.name] = lost end
  end
  -- Asked of the ACL before anything goes: nothing is trimmed that cannot be counted.
  redis.call('INCRBY', trimmed_key, 0)
  for name in pairs(losses) do redis.call('HINCRBY', lost_key, name, 0) end
  redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - #rows)
  redis.call('INCRBY', trimmed_key, #rows)
  for name, lost in pairs(losses) do redis.call('HINCRBY', lost_key, name, lost) end
  return #rows
end
