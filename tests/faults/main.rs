//! Faults: real nodes are killed, paused, restarted and cut off by a seeded schedule while clients go on; then all is healed
//! and the recorded history is checked. A failure prints the seed, the steps so far, each violation with the events around
//! it, and where the whole history is.
//!
//! `FLOTTE_FAULTS_SEED` sets the first seed; `FLOTTE_FAULTS_MINUTES` says how long the ignored test goes on, in which
//! members come and go, too.

mod actor;
mod arena;
mod checker;
mod history;
mod load;
mod schedule;
mod upset;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arena::Arena;
use checker::Violation;
use flotte_tests::{block_on, netns, skip};
use history::{Ack, Event, NOBODY, Phase, Recorder, What};
use load::{Load, Mode, World};
use schedule::{Length, Schedule, Step};

/// How long faults go on in a short run.
const SHORT: Duration = Duration::from_secs(25);
/// The same for each seed of a long one.
const LONG: Duration = Duration::from_secs(150);
/// How long what is under way may take to arrive once all is healed.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(20);
/// How long after the load brief messages have to be gone.
const BRIEF_OVER: Duration = Duration::from_secs(4);
const SHOWN_OF_EACH: usize = 3;

/// Prints what is needed to understand a failed run, however it failed.
struct Report {
    seed: u64,
    steps: Vec<Step>,
    world: Option<Arc<World>>,
}

impl Drop for Report {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("--- seed {}, steps so far:", self.seed);
        self.steps.iter().for_each(|step| eprintln!("{step}"));
        if let Some(world) = &self.world {
            eprintln!("--- history: {}", world.recorder.keep().display());
        }
    }
}

/// One run: faults, then the heal phase, then the checker.
async fn run(seed: u64, length: Length) {
    let duration = match length {
        Length::Short => SHORT,
        Length::Long => LONG,
    };
    let mut report = Report {
        seed,
        steps: Vec::new(),
        world: None,
    };
    let mut arena = Arena::start();
    let load = Load::start(Recorder::new(seed), arena.addresses(), seed);
    let world = Arc::clone(&load.world);
    report.world = Some(Arc::clone(&world));
    let begin = Instant::now();
    for step in Schedule::new(seed, length, arena.links_can_be_cut()) {
        report.steps.push(step);
        tokio::time::sleep(step.rest).await;
        arena.suffer(step, &world.recorder).await;
        if begin.elapsed() >= duration {
            break;
        }
    }
    world.recorder.note(NOBODY, What::Healed);
    settle(&load).await;
    arena.account(&world.recorder).await;
    load.end().await;
    let events = world.recorder.events();
    let violations = checker::check(&events);
    println!(
        "seed {seed}: {}",
        summary(&events, report.steps.len(), violations.len())
    );
    assert!(violations.is_empty(), "{}", explain(&violations, &events));
}

/// Lets everything arrive that has to, then reads the retained messages. What is missing at its end is for the checker.
async fn settle(load: &Load) {
    let world = &load.world;
    load.set(Mode::Quiet);
    let begin = Instant::now();
    loop {
        let events = world.recorder.events();
        if !is_under_way(&events) && checker::outstanding(&events).is_empty()
            || begin.elapsed() > ARRIVAL_LIMIT
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Time alone ends what is brief.
    tokio::time::sleep(BRIEF_OVER.saturating_sub(begin.elapsed())).await;
    world.mark_last().await;
    for node in 1..=3 {
        world.read_kept(node).await;
    }
    world.recorder.note(NOBODY, What::Settled);
}

/// Whether a message of a living connection waits for its acknowledgement.
fn is_under_way(events: &[Event]) -> bool {
    let view = checker::View::new(events);
    let waits = |message: &checker::view::Message| {
        let alive = view
            .connections
            .get(&message.conn)
            .is_some_and(|conn| conn.ended.is_none());
        message.qos > 0 && message.acked.is_none() && alive
    };
    view.messages.values().any(waits)
}

/// What happened, and how much of it the checker had to judge: a run that demands nothing proves nothing.
fn summary(events: &[Event], faults: usize, violations: usize) -> String {
    let count = |pick: fn(&What) -> bool| events.iter().filter(|event| pick(&event.what)).count();
    let view = checker::View::new(events);
    let [lasting, ended] = checker::acked::judged(&view);
    let shared = checker::shared::judged(&view);
    let [wills, goodbyes] = checker::wills::judged(&view);
    assert!(lasting + ended > 0, "nothing had to arrive");
    let kinds = by_kind(events);
    format!(
        "{faults} faults ({kinds}), {} connections, {} messages, {} acknowledged, {} deliveries; had to arrive: {lasting} copies \
         to connections that last and {ended} to others, {shared} to members, {wills} wills, and not {goodbyes}; {violations} violations",
        count(|what| matches!(what, What::Connected { .. })),
        count(|what| matches!(what, What::Published { .. })),
        count(|what| matches!(
            what,
            What::Acked {
                ack: Ack::Puback | Ack::Pubrec,
                ..
            }
        )),
        count(|what| matches!(what, What::Delivered { .. })),
    )
}

/// How many faults of each kind there were.
fn by_kind(events: &[Event]) -> String {
    let mut counts = BTreeMap::<String, u32>::new();
    for event in events {
        if let What::Fault {
            kind,
            phase: Phase::Begins,
            ..
        } = event.what
        {
            *counts.entry(format!("{kind:?}")).or_default() += 1;
        }
    }
    let words = counts.iter().map(|(kind, count)| format!("{kind} {count}"));
    words.collect::<Vec<_>>().join(", ")
}

/// The first violations of each promise, with the events around them, and how many there are of each.
fn explain(violations: &[Violation], events: &[Event]) -> String {
    let mut found: BTreeMap<&str, Vec<&Violation>> = BTreeMap::new();
    for violation in violations {
        found.entry(violation.promise).or_default().push(violation);
    }
    let mut text = format!("{} violations\n", violations.len());
    for (promise, violations) in found {
        let _ = writeln!(text, "--- {promise}: {} violations", violations.len());
        for violation in violations.iter().take(SHOWN_OF_EACH) {
            let lines = checker::around(violation, events).join("\n    ");
            let _ = write!(text, "{violation}\n    {lines}\n");
        }
    }
    text
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name} = {text}: {e}")),
    )
}

fn first_seed() -> u64 {
    variable("FLOTTE_FAULTS_SEED").unwrap_or(1)
}

#[test]
fn promises_hold_through_the_faults_of_one_seed() {
    block_on(run(first_seed(), Length::Short));
}

#[test]
fn promises_hold_through_the_faults_of_another_seed() {
    block_on(run(first_seed() + 1, Length::Short));
}

/// Seed after seed until the time is over.
#[test]
#[ignore = "tests/run --long --minutes N runs it"]
fn promises_hold_through_the_faults_of_many_seeds() {
    let minutes = variable("FLOTTE_FAULTS_MINUTES").unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    for seed in first_seed().. {
        block_on(run(seed, Length::Long));
        if Instant::now() >= end {
            return;
        }
    }
}

/// Counts what the runs above leave out where links cannot be cut.
#[test]
fn links_can_be_cut_here() {
    if let Some(reason) = netns::missing() {
        skip!(format!(
            "no cut, deaf or mute nodes in the schedule: {reason}"
        ));
    }
}
