//! Runs a test's future, waits for conditions, and makes names that no other test uses.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a condition is looked at that nothing announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs a test body on two threads, so that a body may block while its clients go on.
pub fn block_on<F: Future>(body: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    builder.build().expect("a runtime starts").block_on(body)
}

/// Waits until `condition` gives a value, and panics naming `what` when it does not within `limit`.
pub async fn until<T, F, Fut>(limit: Duration, what: &str, mut condition: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// As [`until`], for a thread that may block.
pub fn until_blocking<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A short alphanumeric name that no other test of any run against the same broker uses.
pub fn fresh(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}x{number}", std::process::id())
}

/// The patience of the kit: how long an expected thing may take. `FLOTTE_TEST_PATIENCE_S` sets it.
pub fn patience() -> Duration {
    let seconds = std::env::var("FLOTTE_TEST_PATIENCE_S")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}
