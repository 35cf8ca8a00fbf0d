-- Appends one block, or a run of plain events, once.
--
-- KEYS[1]  the shard (a stream)
-- KEYS[2]  what the server remembers of this producer on this shard (a string)
-- KEYS[3]  of a ring: how many entries were trimmed from the shard (a number)
-- KEYS[4]  of a ring: how many events each group has lost by that (a hash)
-- KEYS[5]  of a ring: the archive's cursor
-- ARGV[1]  sequence number of this block, from 1; '' switches the check off
-- ARGV[2]  floor: every block up to this number is settled at the producer, so it is never sent again
-- ARGV[3]  the last number that this server has acknowledged to the producer
-- ARGV[4]  how long to remember, in ms
-- ARGV[5]  the shard's limits, '<when full> <entries> <bytes>', such as 'block 1000 0'; 0: no limit;
--          '' when it has none
-- ARGV[6]  the codec's mark (rows1, arrow1), or '' for plain events
-- ARGV[7]  number of events
-- ARGV[8]  the block's payload; for plain events, of each in turn: how many arguments follow for it,
--          then name, value, name, value... (not MessagePack: Redis 6.2 unpacks no binary strings)
--
-- Returns  {status, first entry ID, entries, first entry ID, entries, ...}: runs of consecutive IDs.
--          status 'new': appended now.
--          status 'old': it had been appended before; no runs if its IDs are no longer remembered.
--          status 'gap': appended now, but the server had forgotten blocks that it once acknowledged
--                        (it lost data, or the memory of this producer expired).
--          Error SPORDER when an earlier block of this producer is still missing: send that first.
--          Error SPFULL when the shard is full and is to block.
-- Full     when the entries would pass their limit, or the bytes have reached theirs. 'block' refuses
--          then; 'ring' lets the oldest entries go first, at most 100 more than are added: after a
--          limit was lowered it takes several appends, or retain.lua, to get there.
-- Cost     O(1) per block, O(events) for plain ones. GET, XADD (per event when plain), SET; for a
--          producer's first block one SET more; with limits XLEN, MEMORY USAGE (it samples); of a
--          full ring what lose.lua says.
-- Atomic   The server runs scripts alone, and refuses for lack of memory before the first write,
--          so either everything here has happened or nothing. An ACL refuses command by command:
--          the first SET asks it before anything is appended.

local seq, floor = tonumber(ARGV[1]), tonumber(ARGV[2])
local status, kept = 'new', {}

if seq then
  local known = redis.call('GET', KEYS[2])
  local last = 0
  if known then
    last = tonumber(string.match(known, '^%d+'))
    for number, runs in string.gmatch(known, ' (%d+)=(%S+)') do
      if tonumber(number) == seq then
        local reply = {'old'}
        for part in string.gmatch(runs, '[^,+]+') do reply[#reply + 1] = part end
        return reply
      end
      if tonumber(number) > floor then kept[#kept + 1] = number .. '=' .. runs end
    end
  else
    redis.call('SET', KEYS[2], '0', 'PX', ARGV[4])
  end
  if seq <= last then return {'old'} end
  if seq > last + 1 then
    if seq > floor + 1 then
      return redis.error_reply('SPORDER expected block ' .. (last + 1) .. ', got ' .. seq)
    end
    if last < tonumber(ARGV[3]) then status = 'gap' end
  end
end

if ARGV[5] ~= '' then
  local when_full, entries_max, bytes_max = string.match(ARGV[5], '^(%a+) (%d+) (%d+)$')
  entries_max, bytes_max = tonumber(entries_max), tonumber(bytes_max)
  local adds = ARGV[6] ~= '' and 1 or tonumber(ARGV[7])
  local length = redis.call('XLEN', KEYS[1])
  local used = bytes_max > 0 and redis.call('MEMORY', 'USAGE', KEYS[1]) or 0
  local room = math.huge
  if entries_max > 0 then
    -- Producers make no runs above half of it. One that was made before the limit was lowered
    -- would never fit where retain.lua leaves just that much free.
    room = entries_max - math.min(adds, math.max(1, math.floor(entries_max / 2)))
  end
  -- In proportion: entries are of about the same size, and later appends trim what is still above.
  if bytes_max > 0 and used >= bytes_max then
    room = math.min(room, math.floor(length * bytes_max / used) - 1)
  end
  if length > room then
    if when_full == 'block' then
      return redis.error_reply('SPFULL the shard has ' .. length .. ' entries and ' .. used ..
        ' bytes; at most (0: any) ' .. entries_max .. ' and ' .. bytes_max)
    end
    local trimmed_key, lost_key, archived_key = KEYS[3], KEYS[4], KEYS[5]
    -- include lose
    lose('+', math.min(length - math.max(room, 0), adds + 100))
  end
end

local reply = {status}
if ARGV[6] ~= '' then
  local id = redis.pcall('XADD', KEYS[1], '*', 'c', ARGV[6], 'n', ARGV[7], 'd', ARGV[8])
  if type(id) == 'table' and id.err then return id end
  reply[2], reply[3] = id, 1
else
  local call, unpack, type, key, arguments = redis.pcall, unpack, type, KEYS[1], ARGV
  local ids, at, count = {}, 8, tonumber(ARGV[7])
  for i = 1, count do
    local stop = at + arguments[at]
    local id = call('XADD', key, '*', unpack(arguments, at + 1, stop))
    at = stop + 1
    if type(id) == 'table' then return id end
    ids[i] = id
  end
  -- IDs of one script are mostly consecutive: same millisecond, counting up. As they only rise, the
  -- first and the last show it. They go back as runs.
  local first_ms, first = string.match(ids[1], '^(%d+)-(%d+)$')
  local last_ms, last = string.match(ids[count], '^(%d+)-(%d+)$')
  if first_ms == last_ms and last - first == count - 1 then
    reply[2], reply[3] = ids[1], count
  else
    local run_ms, run_seq
    for i = 1, count do
      local ms, number = string.match(ids[i], '^(%d+)-(%d+)$')
      number = tonumber(number)
      if ms == run_ms and number == run_seq + 1 then
        reply[#reply] = reply[#reply] + 1
      else
        reply[#reply + 1], reply[#reply + 2] = ids[i], 1
      end
      run_ms, run_seq = ms, number
    end
  end
end

if seq then
  local runs = {}
  for i = 2, #reply, 2 do runs[#runs + 1] = reply[i] .. '+' .. reply[i + 1] end
  kept[#kept + 1] = ARGV[1] .. '=' .. table.concat(runs, ',')
  redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. table.concat(kept, ' '), 'PX', ARGV[4])
end
return reply
