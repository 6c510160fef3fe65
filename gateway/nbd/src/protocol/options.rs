//! Data of the handshake options that carry any. Every length is checked against what is there before it is used.
//!
//! ```text
//! INFO, GO                            LIST_META_CONTEXT, SET_META_CONTEXT
//! 0    name length n      u32         0    name length n       u32
//! 4    name                           4    name
//! 4+n  count              u16         4+n  count               u32
//! 6+n  information types  u16 each    8+n  queries, each its length (u32) and its bytes
//! ```

use super::STRING_MAX;

/// Why an option's data was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadOption {
    /// A length does not fit the data.
    Malformed,
    /// A string is longer than the protocol allows.
    TooLong,
}

/// Information a client may ask for with INFO and GO.
pub(crate) mod information {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// The data of INFO and GO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) wants_name: bool,
    pub(crate) wants_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Result<Self, BadOption> {
        let mut rest = data;
        let name = take_string(&mut rest)?;
        let count = usize::from(u16::from_be_bytes(take(&mut rest)?));
        if rest.len() != count * 2 {
            return Err(BadOption::Malformed);
        }
        let wants = |kind: u16| rest.chunks_exact(2).any(|bytes| bytes == kind.to_be_bytes());
        Ok(Self {
            name,
            wants_name: wants(information::NAME),
            wants_block_size: wants(information::BLOCK_SIZE),
        })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ContextRequest<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) queries: Vec<&'a [u8]>,
}

impl<'a> ContextRequest<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Result<Self, BadOption> {
        let mut rest = data;
        let name = take_string(&mut rest)?;
        let count = u32::from_be_bytes(take(&mut rest)?) as usize;
        // A query takes four bytes at least, so the count is checked before it sizes anything.
        if count > rest.len() / 4 {
            return Err(BadOption::Malformed);
        }
        let queries = (0..count).map(|_| take_string(&mut rest)).collect::<Result<_, _>>()?;
        if rest.is_empty() { Ok(Self { name, queries }) } else { Err(BadOption::Malformed) }
    }
}

fn take<const LENGTH: usize>(rest: &mut &[u8]) -> Result<[u8; LENGTH], BadOption> {
    let (bytes, after) = rest.split_first_chunk::<LENGTH>().ok_or(BadOption::Malformed)?;
    *rest = after;
    Ok(*bytes)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadOption> {
    let length = u32::from_be_bytes(take(rest)?) as usize;
    let (string, after) = rest.split_at_checked(length).ok_or(BadOption::Malformed)?;
    if length > STRING_MAX {
        return Err(BadOption::TooLong);
    }
    *rest = after;
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_decoded_but_never_panic(
            data in proptest::collection::vec(any::<u8>(), 0..256),
        ) {
            let _ = InfoRequest::decode(&data);
            let _ = ContextRequest::decode(&data);
        }

        #[test]
        fn a_context_request_decodes_to_what_was_encoded(
            name in proptest::collection::vec(any::<u8>(), 0..64),
            queries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..32), 0..8),
        ) {
            let mut data = string(&name);
            data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
            for query in &queries {
                data.extend(string(query));
            }
            let decoded = ContextRequest::decode(&data).unwrap();
            prop_assert_eq!(decoded.name, &name[..]);
            prop_assert_eq!(decoded.queries, queries);
        }

        #[test]
        fn a_cut_or_extended_info_request_is_malformed(
            name in proptest::collection::vec(any::<u8>(), 0..64),
            kinds in proptest::collection::vec(any::<u16>(), 0..8),
            cut in 1..6_usize,
        ) {
            let mut data = string(&name);
            data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
            data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
            let decoded = InfoRequest::decode(&data).unwrap();
            prop_assert_eq!(decoded.wants_block_size, kinds.contains(&3));
            prop_assert_eq!(decoded.wants_name, kinds.contains(&1));
            prop_assert_eq!(InfoRequest::decode(&data[..data.len() - cut]), Err(BadOption::Malformed));
            data.push(0);
            prop_assert_eq!(InfoRequest::decode(&data), Err(BadOption::Malformed));
        }
    }

    #[test]
    fn a_name_beyond_4096_bytes_is_too_long() {
        let mut data = string(&vec![b'x'; STRING_MAX + 1]);
        data.extend([0, 0]);
        assert_eq!(InfoRequest::decode(&data), Err(BadOption::TooLong));
    }

    #[test]
    fn a_query_count_that_cannot_fit_is_refused_before_it_allocates() {
        let mut data = string(b"disk");
        data.extend(u32::MAX.to_be_bytes());
        assert_eq!(ContextRequest::decode(&data), Err(BadOption::Malformed));
    }
}
