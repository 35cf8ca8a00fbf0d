-- Keeps those events of an entry that were given up on, and acknowledges the entry with the last.
--
-- Many letters come in several calls, all but the last with 'keep'. If the process dies in between,
-- the entry is still pending and will be settled anew: letters may then be there twice.
--
-- KEYS[1]   the shard
-- KEYS[2]   its dead letters (a stream)
-- KEYS[3]   in ordered mode: its lease for the group; the last argument is then the consumer's fence
-- ARGV[1]   group
-- ARGV[2]   consumer
-- ARGV[3]   entry ID
-- ARGV[4]   'ack': acknowledge the entry; 'keep': more letters will follow; 'again': like 'keep', but
--           the same call may have been executed before
-- ARGV[5..] of each dead letter in turn: how many arguments follow for it, then name, value...
--
-- Returns  how many dead letters are kept by this call: 0 if the entry is not pending for this
--          consumer, because another one has taken it over; -1 if the lease is not the consumer's
--          any more. Then nothing was done here.
-- Cost     O(log(pending)), O(1) per dead letter. XPENDING, XADD each, XACK; with 'again' also
--          XREVRANGE of the last 1000 letters.

local group, consumer, id, what = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if KEYS[3] then
  local held, fence = redis.call('HMGET', KEYS[3], 'owner', 'fence'), table.remove(ARGV)
  if held[1] ~= consumer or held[2] ~= fence then return -1 end
end
if #redis.call('XPENDING', KEYS[1], group, id, id, 1, consumer) == 0 then return 0 end

local letters, at = {}, 5
while at <= #ARGV do
  local stop = at + tonumber(ARGV[at])
  letters[#letters + 1] = {unpack(ARGV, at + 1, stop)}
  at = stop + 1
end

if what == 'again' then
  -- The last one is there only if all are. A letter holds the time of its making and the event's ID.
  local last = table.concat(letters[#letters], '\0')
  for _, row in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1000)) do
    if table.concat(row[2], '\0') == last then return #letters end
  end
end
-- The letters first: a script that fails half-way is not undone, and an entry that was acknowledged
-- without its letters would be lost. Refused here (key of another type, ACL, memory), it stays
-- pending.
for _, letter in ipairs(letters) do redis.call('XADD', KEYS[2], '*', unpack(letter)) end
if what == 'ack' then redis.call('XACK', KEYS[1], group, id) end
return #letters
