//! An input as a stream of choices. Everything is taken from the front, so that a seed is written as it is read; where the
//! input has ended, numbers are zero.

use arbitrary::{Arbitrary, Unstructured};

#[derive(Debug)]
pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn number<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.number()
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    /// One of `choices`.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// The next `length` bytes, or all that are left.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let length = length.min(self.0.len());
        self.0.bytes(length).expect("that many bytes are left")
    }

    /// A length byte and that many bytes.
    pub(crate) fn string(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.bytes(length)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}
