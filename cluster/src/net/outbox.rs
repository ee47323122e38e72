//! The outbound half of a control stream: a queue of envelopes, bounded in number and in bytes, and
//! the stream of frames made from it.
//!
//! A frame takes all envelopes that wait, up to a size, and goes out at once. Only those that may wait do, for a moment, for
//! others: so the heartbeats of all groups on one beat make one frame, and so do their answers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use flotte_proto::{ControlFrame, Envelope};
use futures::Stream;
use metrics::{Counter, counter};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bounds of one queue.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Envelopes that may wait.
    pub envelopes_max: usize,
    /// Bytes that may wait. One envelope may be larger; it then waits alone.
    pub bytes_max: usize,
    /// A frame is full once it is this large, in bytes.
    pub frame_bytes: usize,
    /// Larger envelopes are refused, as the peer would drop the whole stream over them.
    pub envelope_bytes_max: usize,
}

/// Why an envelope was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    #[error("the stream has ended")]
    Closed,
    #[error("a message of {size} bytes is over the limit of {max}")]
    TooLarge { size: usize, max: usize },
}

/// How often all other tasks that are ready have a turn before an envelope that may wait goes with nothing else to take it along. What
/// wakes several groups at once, a beat or a frame, has made all of them say what they have to say by then; no timer is needed for it.
const TURNS: u8 = 4;

/// Where envelopes are put; clones share one queue.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: mpsc::Sender<Queued>,
    /// Free bytes. Envelopes take them in order, so that none overtakes a larger one.
    room: Arc<Semaphore>,
    limits: OutboxLimits,
}

#[derive(Debug)]
struct Queued {
    envelope: Envelope,
    size: usize,
    /// Gives the bytes back when the envelope leaves the queue.
    _room: OwnedSemaphorePermit,
}

/// The frames to send; the stream ends once every [`Outbox`] is gone and the queue is empty.
#[derive(Debug)]
pub struct Frames {
    queue: mpsc::Receiver<Queued>,
    frame_bytes: usize,
    /// Those that wait for others; less than a frame.
    held: Vec<Queued>,
    held_bytes: usize,
    /// Turns that others have had since the first of them came.
    turns: u8,
    sent: Sent,
}

/// What the metrics page shows of control streams, of all together.
struct Sent {
    frames: Counter,
    envelopes: Counter,
}

impl Sent {
    fn new() -> Self {
        Self {
            frames: counter!("flotte_control_frames_sent_total"),
            envelopes: counter!("flotte_control_messages_sent_total"),
        }
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sent")
    }
}

/// A queue and its frames.
pub fn channel(limits: OutboxLimits) -> (Outbox, Frames) {
    let (sender, receiver) = mpsc::channel(limits.envelopes_max.max(1));
    let outbox = Outbox {
        queue: sender,
        room: Arc::new(Semaphore::new(limits.bytes_max.max(1))),
        limits,
    };
    let frames = Frames {
        queue: receiver,
        frame_bytes: limits.frame_bytes,
        held: Vec::new(),
        held_bytes: 0,
        turns: 0,
        sent: Sent::new(),
    };
    (outbox, frames)
}

impl Outbox {
    /// Puts an envelope in the queue, once there is room for it. Callers are served in order.
    pub async fn push(&self, envelope: Envelope) -> Result<(), PushError> {
        let size = envelope.encoded_len();
        if size > self.limits.envelope_bytes_max {
            return Err(PushError::TooLarge {
                size,
                max: self.limits.envelope_bytes_max,
            });
        }
        let share = size.clamp(1, self.limits.bytes_max.max(1));
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room)
            .acquire_many_owned(share)
            .await
            .map_err(|_| PushError::Closed)?;
        let queued = Queued {
            envelope,
            size,
            _room: room,
        };
        self.queue.send(queued).await.map_err(|_| PushError::Closed)
    }

    /// Resolves once nobody takes frames any more.
    pub async fn closed(&self) {
        self.queue.closed().await;
        self.room.close();
    }
}

impl Frames {
    fn hold(&mut self, queued: Queued) {
        if self.held.is_empty() {
            self.turns = 0;
        }
        self.held_bytes += queued.size;
        self.held.push(queued);
    }

    /// All that is held and all that waits, up to the size of a frame.
    fn frame(&mut self) -> Option<ControlFrame> {
        while self.held_bytes < self.frame_bytes {
            let Ok(next) = self.queue.try_recv() else {
                break;
            };
            self.held_bytes += next.size;
            self.held.push(next);
        }
        self.held_bytes = 0;
        let envelopes: Vec<Envelope> = self.held.drain(..).map(|queued| queued.envelope).collect();
        if envelopes.is_empty() {
            return None;
        }
        self.sent.frames.increment(1);
        self.sent.envelopes.increment(envelopes.len() as u64);
        Some(ControlFrame { envelopes })
    }
}

impl Stream for Frames {
    type Item = ControlFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ControlFrame>> {
        loop {
            match self.queue.poll_recv(cx) {
                Poll::Ready(Some(queued)) => {
                    let may_wait = queued.envelope.may_wait;
                    self.hold(queued);
                    if !may_wait || self.held_bytes >= self.frame_bytes {
                        return Poll::Ready(self.frame());
                    }
                }
                Poll::Ready(None) => return Poll::Ready(self.frame()),
                Poll::Pending if self.held.is_empty() => return Poll::Pending,
                Poll::Pending if self.turns < TURNS => {
                    self.turns += 1;
                    // To the end of the line of those that are ready.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(self.frame()),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_proto::envelope::Body;
    use futures::{FutureExt, StreamExt};

    use super::*;

    const LIMITS: OutboxLimits = OutboxLimits {
        envelopes_max: 8,
        bytes_max: 100,
        frame_bytes: 60,
        envelope_bytes_max: 200,
    };

    fn envelope(call: u64, size: usize) -> Envelope {
        Envelope {
            call,
            body: Some(Body::Error("x".repeat(size))),
            ..Envelope::default()
        }
    }

    #[tokio::test]
    async fn a_frame_takes_what_waits_up_to_its_size() {
        let (outbox, mut frames) = channel(LIMITS);
        for call in 1..=4 {
            outbox.push(envelope(call, 20)).await.unwrap();
        }
        drop(outbox);
        let calls =
            |frame: ControlFrame| -> Vec<u64> { frame.envelopes.iter().map(|e| e.call).collect() };
        assert_eq!(calls(frames.next().await.unwrap()), [1, 2, 3]);
        assert_eq!(calls(frames.next().await.unwrap()), [4]);
        assert!(frames.next().await.is_none());
    }

    fn patient(call: u64) -> Envelope {
        Envelope {
            may_wait: true,
            ..envelope(call, 5)
        }
    }

    #[tokio::test]
    async fn what_may_wait_goes_together_once_others_had_their_turns() {
        let (outbox, mut frames) = channel(LIMITS);
        outbox.push(patient(1)).await.unwrap();
        for call in 2..=u64::from(TURNS) {
            assert!(frames.next().now_or_never().is_none());
            outbox.push(patient(call)).await.unwrap();
        }
        assert!(frames.next().now_or_never().is_none());
        let frame = frames.next().await.unwrap();
        assert_eq!(frame.envelopes.len(), usize::from(TURNS));
        outbox.push(patient(3)).await.unwrap();
        drop(outbox);
        assert_eq!(frames.next().await.unwrap().envelopes.len(), 1);
        assert!(frames.next().await.is_none());
    }

    #[tokio::test]
    async fn what_may_not_wait_goes_at_once_and_takes_the_others_along() {
        let (outbox, mut frames) = channel(LIMITS);
        outbox.push(patient(1)).await.unwrap();
        assert!(frames.next().now_or_never().is_none());
        outbox.push(envelope(2, 5)).await.unwrap();
        let frame = frames.next().now_or_never().unwrap().unwrap();
        assert_eq!(
            frame.envelopes.iter().map(|e| e.call).collect::<Vec<_>>(),
            [1, 2]
        );
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_come_back_with_the_frame() {
        let (outbox, mut frames) = channel(LIMITS);
        outbox.push(envelope(1, 70)).await.unwrap();
        let mut second = Box::pin(outbox.push(envelope(2, 70)));
        assert!(second.as_mut().now_or_never().is_none(), "no room yet");
        assert!(frames.next().await.is_some());
        second.await.unwrap();
    }

    #[tokio::test]
    async fn an_envelope_over_the_whole_room_goes_alone() {
        let (outbox, mut frames) = channel(LIMITS);
        outbox.push(envelope(1, 150)).await.unwrap();
        assert!(outbox.push(envelope(2, 1)).now_or_never().is_none());
        assert_eq!(frames.next().await.unwrap().envelopes.len(), 1);
        assert!(matches!(
            outbox.push(envelope(3, 300)).await,
            Err(PushError::TooLarge { max: 200, .. })
        ));
    }

    #[tokio::test]
    async fn a_dropped_reader_ends_the_queue() {
        let (outbox, frames) = channel(LIMITS);
        drop(frames);
        outbox.closed().await;
        assert_eq!(outbox.push(envelope(1, 1)).await, Err(PushError::Closed));
    }
}
