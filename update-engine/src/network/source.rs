//! Steps 5 to 7, download to slot: stored bytes from the network, for the threads that write the slot.
//!
//! The transfer runs on the runtime and hands its pieces through a bounded channel to the blocking thread that deals
//! them out: the network goes on while the disk works, and stops when the channel is full.

use super::NetworkError;
use super::payload::{Payload, Piece};
use disk::assemble::{Sink, SourceError, StoredBytes};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};

/// Pieces between network and disk. A piece is what one read of a connection brought, some ten to hundred KiB.
const PIECES: usize = 16;

/// How often a transfer that waits for the network looks whether it is to stop.
const ABORT_POLL: Duration = Duration::from_millis(250);

/// Someone asked the transfer to stop.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("stopped")]
pub struct Cancelled;

/// Returns once `abort` is set.
pub async fn aborted(abort: &AtomicBool) {
    while !abort.load(Ordering::Relaxed) {
        tokio::time::sleep(ABORT_POLL).await;
    }
}

/// A payload on the server, for a blocking thread.
pub struct NetworkBytes {
    payload: Arc<Mutex<Payload>>,
    runtime: Handle,
    abort: Arc<AtomicBool>,
    watch: Box<dyn FnMut(u64) + Send>,
}

impl std::fmt::Debug for NetworkBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkBytes").field("payload", &self.payload).finish_non_exhaustive()
    }
}

impl NetworkBytes {
    /// Fetches from `payload` on `runtime` until `abort` is set. `watch` is told of every piece's length before it is
    /// passed on.
    pub fn new(
        payload: Payload,
        runtime: Handle,
        abort: Arc<AtomicBool>,
        watch: impl FnMut(u64) + Send + 'static,
    ) -> Self {
        Self { payload: Arc::new(Mutex::new(payload)), runtime, abort, watch: Box::new(watch) }
    }
}

impl NetworkBytes {
    /// The next piece, `None` after the last.
    fn next(&self, pieces: &mut mpsc::Receiver<Piece>) -> Result<Option<Piece>, Cancelled> {
        if self.abort.load(Ordering::Relaxed) {
            return Err(Cancelled);
        }
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                piece = pieces.recv() => Ok(piece),
                () = aborted(&self.abort) => Err(Cancelled),
            }
        })
    }

    /// Passes all pieces on.
    fn deal_out(
        &mut self,
        pieces: &mut mpsc::Receiver<Piece>,
        sink: &mut Sink<'_>,
    ) -> Result<(), SourceError> {
        while let Some((offset, bytes)) =
            self.next(pieces).map_err(|stopped| SourceError::Failed(Box::new(stopped)))?
        {
            (self.watch)(bytes.len() as u64);
            sink(offset, &bytes)?;
        }
        Ok(())
    }
}

impl StoredBytes for NetworkBytes {
    fn read(&mut self, ranges: &[Range<u64>], sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let (sender, mut pieces) = mpsc::channel::<Piece>(PIECES);
        let (payload, ranges) = (Arc::clone(&self.payload), ranges.to_vec());
        let transfer =
            self.runtime.spawn(async move { payload.lock().await.deliver(&ranges, &sender).await });
        if let Err(error) = self.deal_out(&mut pieces, sink) {
            // It may be waiting for a server that never answers.
            transfer.abort();
            return Err(error);
        }
        match self.runtime.block_on(transfer) {
            Ok(result) => result.map_err(|error: NetworkError| SourceError::Failed(Box::new(error))),
            Err(failure) => std::panic::resume_unwind(failure.into_panic()),
        }
    }
}
