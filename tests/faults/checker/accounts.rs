//! P8, of live sessions: at rest a node has delivered, queues, or has dropped for a reason every copy that it accepted. Its
//! counters begin with its process.

use super::{View, Violation};
use crate::history::What;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let judge = |what: &What| match what {
        What::Accounted {
            node,
            accepted,
            accounted,
        } if accepted != accounted => Some(Violation {
            promise: "P8",
            what: format!("n{node} accepted {accepted} copies and accounts for {accounted}"),
            conns: Vec::new(),
            message: None,
        }),
        _ => None,
    };
    let found = view.events.iter().filter_map(|event| judge(&event.what));
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;

    #[test]
    fn what_was_accepted_is_accounted_for() {
        assert_eq!(count(&Script::default().accounts(1, 7, 7), check), 0);
    }

    #[test]
    fn a_copy_that_is_lost_or_counted_twice_is_a_violation() {
        for accounted in [6, 8] {
            let script = Script::default()
                .accounts(1, 7, 7)
                .accounts(2, 7, accounted);
            assert_eq!(count(&script, check), 1, "{accounted}");
        }
    }
}
