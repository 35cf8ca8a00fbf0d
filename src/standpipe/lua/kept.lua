-- What a shard still has, and what it ever had.
--
-- Sent behind an XRANGE in the same write, it says whether that may have missed something: entries
-- that were trimmed, and up to where the archive has them.
--
-- KEYS[1]  the shard
-- KEYS[2]  its archive cursor
--
-- Returns  {entries, first entry ID, last ID ever given, entries ever added, highest ID that was
--          deleted by XDEL, archive cursor}. First entry ID: '' where there is no entry. The fourth
--          is -1 and the fifth '' before Redis 7; the cursor is '' where there is none. Without the
--          shard's key all is 0 or '' but the cursor.
-- Cost     O(1). EXISTS, XINFO STREAM (which copies the first and the last entry), GET.

local cursor = redis.call('GET', KEYS[2]) or ''
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, '', '0-0', 0, '', cursor} end
local reply, info = redis.call('XINFO', 'STREAM', KEYS[1]), {}
for i = 1, #reply, 2 do info[reply[i]] = reply[i + 1] end
local first = info['first-entry']
return {
  info['length'],
  first and first[1] or '',
  info['last-generated-id'],
  info['entries-added'] or -1,
  info['max-deleted-entry-id'] or '',
  cursor,
}
