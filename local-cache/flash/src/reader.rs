//! Reading what is not in the page cache, on a few threads of its own: the only reads that wait for the device.

use crate::device::Device;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// Reads that may wait; more are misses at once. A device that hangs must not collect them.
const WAITING_MAX: usize = 1024;

/// What came of a read: the buffer, and how much of it is filled.
pub(crate) type Filled = (Vec<u8>, io::Result<usize>);

#[derive(Debug)]
struct Request {
    offset: u64,
    buffer: Vec<u8>,
    began: oneshot::Sender<u64>,
    reply: oneshot::Sender<Filled>,
}

/// A read as the one who asked for it sees it.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Its number, once a thread begins it: what takes long before that is no fault of the device's.
    pub(crate) began: oneshot::Receiver<u64>,
    pub(crate) answer: oneshot::Receiver<Filled>,
}

/// Why a read is not even waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Declined {
    /// Too many wait already, or there is nobody to read any more.
    Busy,
    /// Every thread is in a read that takes too long.
    Hanging,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Request>,
    threads: usize,
    /// Reads that have begun, by number, and whether they take too long.
    reading: Vec<(u64, bool)>,
    last: u64,
    closed: bool,
}

/// The threads' common queue.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    state: Mutex<State>,
    wake: Notify,
}

impl Readers {
    /// Fills the buffer from there.
    pub(crate) fn read(&self, offset: u64, buffer: Vec<u8>) -> Result<Pending, Declined> {
        let (reply, answer) = oneshot::channel();
        let (start, began) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed || state.waiting.len() >= WAITING_MAX {
            return Err(Declined::Busy);
        }
        let overdue = state.reading.iter().filter(|(_, overdue)| *overdue).count();
        if overdue > 0 && overdue == state.threads {
            return Err(Declined::Hanging);
        }
        state.waiting.push_back(Request { offset, buffer, began: start, reply });
        drop(state);
        self.wake.notify_one();
        Ok(Pending { began, answer })
    }

    /// The read with this number takes too long.
    pub(crate) fn overdue(&self, number: u64) {
        let mut state = self.state.lock();
        if let Some((_, overdue)) = state.reading.iter_mut().find(|(reading, _)| *reading == number) {
            *overdue = true;
        }
    }

    /// One thread's work.
    pub(crate) async fn run(self: Arc<Self>, device: Arc<dyn Device>) {
        self.state.lock().threads += 1;
        loop {
            let changed = self.wake.notified();
            let (request, closed) = {
                let mut state = self.state.lock();
                (state.waiting.pop_front(), state.closed)
            };
            match request {
                // Whoever asked may have stopped waiting meanwhile.
                Some(request) if request.reply.is_closed() => {}
                Some(request) => self.serve(request, &*device),
                None if closed => break,
                None => changed.await,
            }
        }
        self.state.lock().threads -= 1;
    }

    fn serve(&self, request: Request, device: &dyn Device) {
        let Request { offset, mut buffer, began, reply } = request;
        let number = {
            let mut state = self.state.lock();
            state.last += 1;
            let number = state.last;
            state.reading.push((number, false));
            number
        };
        let _ = began.send(number);
        let result = device.read(offset, &mut buffer);
        self.state.lock().reading.retain(|&(reading, _)| reading != number);
        let _ = reply.send((buffer, result));
    }

    /// Ends the threads, after what waits.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_waiters();
        self.wake.notify_one();
    }
}
