//! The runtime as the consensus library sees it: tokio's, with timers that fall on the node's common beat.
//!
//! Each group has a timer that looks at its deadlines, several times between two heartbeats. By themselves those of nine
//! groups wake an idle node three hundred times a second, each for itself; on the beat they wake it twenty times.

use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_tokio::{
    TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch,
};

use crate::beat;

/// Waits that are shorter than this are no timers, but batch what is under way.
const TIMER_MIN: Duration = Duration::from_millis(2);

/// Tokio's runtime, but for deadlines that are no nearer than [`TIMER_MIN`]: those are late by up to a beat.
#[derive(Debug)]
pub struct Paced(TokioRuntime);

impl AsyncRuntime for Paced {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: TokioInstant) -> Self::Sleep {
        let wait = deadline - TokioInstant::now();
        let deadline = tokio::time::Instant::now() + wait;
        tokio::time::sleep_until(match wait > TIMER_MIN {
            true => beat::at_or_after(deadline),
            false => deadline,
        })
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: TokioInstant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timers_fall_on_the_beat_and_short_waits_do_not() {
        let now = tokio::time::Instant::now;
        beat::interval(beat::BEAT).tick().await;
        Paced::sleep_until(TokioInstant::now() + Duration::from_millis(3)).await;
        // Timers are exact to a millisecond.
        let just_before = now() - TIMER_MIN;
        assert!(beat::at_or_after(just_before) <= now(), "on the beat");
        let begin = now();
        Paced::sleep_until(TokioInstant::now() + Duration::from_millis(1)).await;
        assert!(now() - begin < beat::BEAT);
    }
}
