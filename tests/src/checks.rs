//! What real clients must see, one function per client and behaviour.
