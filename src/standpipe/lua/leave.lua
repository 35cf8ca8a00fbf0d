-- Removes a consumer from its group if it holds nothing.
--
-- XGROUP DELCONSUMER alone would drop the pending entries with it: they would never be delivered
-- again (https://redis.io/docs/latest/commands/xgroup-delconsumer/).
--
-- KEYS[1]  the shard
-- ARGV[1]  group
-- ARGV[2]  consumer
--
-- Returns  1 removed, 0 kept because it has pending entries, -1 not there.
-- Cost     O(consumers of the group). XINFO CONSUMERS, XGROUP DELCONSUMER.

for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local name, pending
  for i = 1, #row, 2 do
    if row[i] == 'name' then name = row[i + 1] end
    if row[i] == 'pending' then pending = row[i + 1] end
  end
  if name == ARGV[2] then
    if pending > 0 then return 0 end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return -1
