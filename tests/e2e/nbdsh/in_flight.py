# 64 requests in flight on one connection, mixed, answered in any order, all of them right.
h = nbd.NBD()
h.connect_uri(uri)
dice = random.Random(4)
SLOT = 65536
slots = min(512, size // SLOT)
content = [bytes(SLOT) for _ in range(slots)]
busy = set()
done = 0


def completed(slot, check):
    def callback(error):
        global done
        assert error.value == 0, error.value
        check()
        busy.discard(slot)
        done += 1
        return 1

    return callback


def start():
    slot = dice.randrange(slots)
    while slot in busy:
        slot = dice.randrange(slots)
    busy.add(slot)
    start_at = dice.randrange(0, SLOT, 512)
    length = dice.randrange(512, SLOT - start_at + 1, 512)
    if dice.randrange(2):
        data = dice.randbytes(length)
        content[slot] = content[slot][:start_at] + data + content[slot][start_at + length :]
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), slot * SLOT + start_at, completed(slot, lambda: None))
    else:
        buffer = nbd.Buffer(length)
        expected = content[slot][start_at : start_at + length]

        def check():
            assert buffer.to_bytearray() == expected, "slot %d" % slot

        h.aio_pread(buffer, slot * SLOT + start_at, completed(slot, check))


started = 0
while done < 6000:
    while len(busy) < 64 and started < 6000:
        start()
        started += 1
    h.poll(-1)
assert h.aio_in_flight() == 0
h.shutdown()
