//! Steps 4 and 5: bodies that are watched while they move.

use super::{Activity, UnderWay};
use axum::BoxError;
use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// The body of a request that came too slowly.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body did not come within {} s", .0.as_secs())]
pub struct TooSlow(pub Duration);

/// A request's body: it must not rest for too long.
pub(super) struct Read {
    body: Incoming,
    activity: Activity,
    patience: Duration,
    /// Runs only while it is the client that is waited for.
    wait: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Read {
    pub(super) fn new(body: Incoming, activity: Activity, patience: Duration) -> Self {
        Self { body, activity, patience, wait: Box::pin(sleep(patience)), waiting: false }
    }
}

impl HttpBody for Read {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = false;
            self.activity.moved();
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let this = &mut *self;
        if !std::mem::replace(&mut this.waiting, true) {
            this.wait.as_mut().reset(Instant::now() + this.patience);
        }
        this.wait.as_mut().poll(cx).map(|()| Some(Err(TooSlow(this.patience).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The same body, if it comes as a whole within `patience`; an error if not.
pub(crate) fn within(body: Body, patience: Duration) -> Body {
    if body.is_end_stream() {
        body
    } else {
        Body::new(Within { body, patience, end: Box::pin(sleep(patience)) })
    }
}

struct Within {
    body: Body,
    patience: Duration,
    end: Pin<Box<Sleep>>,
}

impl HttpBody for Within {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // What is there already is not late.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let patience = self.patience;
        self.end.as_mut().poll(cx).map(|()| Some(Err(TooSlow(patience).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body: until its end the request is under way.
pub(super) struct Counted {
    body: Body,
    under_way: UnderWay,
}

impl Counted {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        Self { body, under_way }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.under_way.0.moved();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
