# The option phase: a client may look around, be refused, and still go on.
h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_unix(socket)
assert h.aio_is_negotiating()
assert h.get_structured_replies_negotiated()

listed = []
h.opt_list(lambda found, description: listed.append(found))
assert name in listed, listed

h.set_export_name(name)
h.opt_info()
assert h.get_size() == size, h.get_size()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1, h.get_block_size(nbd.SIZE_MINIMUM)
assert h.get_block_size(nbd.SIZE_PREFERRED) >= 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) >= 32 * 1024 * 1024

contexts = []
h.add_meta_context("base:")
h.opt_list_meta_context(lambda context: contexts.append(context))
assert "base:allocation" in contexts, contexts
h.clear_meta_contexts()

h.set_export_name("there-is-no-such-export")
for refused in (h.opt_info, h.opt_go):
    try:
        refused()
    except nbd.Error as error:
        assert error.errnum == errno.ENOENT, error
    else:
        raise AssertionError("an unknown export was accepted")
assert h.aio_is_negotiating()

h.set_export_name(name)
h.add_meta_context("base:allocation")
h.opt_go()
assert h.aio_is_ready()
assert h.can_meta_context("base:allocation")
h.pwrite(b"negotiated", 5)
assert h.pread(10, 5) == b"negotiated"
h.shutdown()

# ABORT ends the session in good order.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(socket)
h.opt_abort()
assert h.aio_is_closed()

# The oldest way in, EXPORT_NAME without structured replies.
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_request_structured_replies(False)
h.set_export_name(name)
h.connect_unix(socket)
assert not h.get_structured_replies_negotiated()
assert h.get_size() == size
assert h.pread(10, 5) == b"negotiated"
h.shutdown()
