-- Removes one consumer from its group, if it has nothing pending and is not at work.
--
-- Checked and removed in one step: XGROUP DELCONSUMER drops what the consumer has pending by then,
-- and it would never be delivered again (https://redis.io/docs/latest/commands/xgroup-delconsumer/).
--
-- KEYS[1]  the shard
-- ARGV[1]  group
-- ARGV[2]  consumer
-- ARGV[3]  for how long it must not have asked for anything, ms
--
-- Returns  {how it went: 'removed', 'absent', 'pending' or 'active',
--           entries that it has pending, ms since it last asked for anything}
-- Cost     O(consumers of the group). XINFO CONSUMERS, XGROUP DELCONSUMER.

for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #row, 2 do consumer[row[i]] = row[i + 1] end
  if consumer.name == ARGV[2] then
    local went = 'removed'
    if consumer.pending > 0 then
      went = 'pending'
    elseif consumer.idle < tonumber(ARGV[3]) then
      went = 'active'
    else
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    end
    return {went, consumer.pending, consumer.idle}
  end
end
return {'absent', 0, 0}
