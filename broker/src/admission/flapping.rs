//! Clients that connect again and again. Pure; bounded, as it remembers hashes of few clients and forgets the old ones.

use std::hash::BuildHasher;

use flotte_mqtt::ClientId;
use foldhash::quality::RandomState;
use hashbrown::HashMap;

/// Clients that are remembered; past it those that came long ago are forgotten, and further ones are not looked at.
const CLIENTS_MAX: usize = 65_536;

/// When a client comes too often.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// This often within the window is fine.
    pub connects_max: u32,
    /// Over how long they are counted.
    pub window_us: u64,
    /// How long the client is not taken then.
    pub ban_us: u64,
}

/// What is known of the clients that came lately.
#[derive(Debug, Default)]
pub struct Flapping {
    hasher: RandomState,
    clients: HashMap<u64, Lately, RandomState>,
}

#[derive(Debug, Clone, Copy)]
struct Lately {
    connects: u32,
    since_us: u64,
    banned_until_us: u64,
}

impl Flapping {
    /// A client connects. Whether it may not, as it comes too often.
    pub fn connects(&mut self, client: &ClientId, limits: Limits, now_us: u64) -> bool {
        let key = self.hasher.hash_one(client.as_str());
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&key) {
            self.clients
                .retain(|_, lately| !lately.is_over(limits, now_us));
            if self.clients.len() >= CLIENTS_MAX {
                return false;
            }
        }
        let lately = self.clients.entry(key).or_insert(Lately {
            connects: 0,
            since_us: now_us,
            banned_until_us: 0,
        });
        if lately.banned_until_us > now_us {
            return true;
        }
        if lately.is_over(limits, now_us) {
            (lately.connects, lately.since_us) = (0, now_us);
        }
        lately.connects += 1;
        let flaps = lately.connects > limits.connects_max;
        if flaps {
            lately.banned_until_us = now_us.saturating_add(limits.ban_us);
            lately.connects = 0;
        }
        flaps
    }
}

impl Lately {
    fn is_over(&self, limits: Limits, now_us: u64) -> bool {
        self.banned_until_us <= now_us && now_us - self.since_us >= limits.window_us
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        connects_max: 3,
        window_us: 100,
        ban_us: 1_000,
    };

    fn id(text: &str) -> ClientId {
        ClientId::try_from(text).unwrap()
    }

    #[test]
    fn who_comes_too_often_is_sent_away_for_a_while() {
        let (mut flapping, a, b) = (Flapping::default(), id("a"), id("b"));
        for now in 0..3 {
            assert!(!flapping.connects(&a, LIMITS, now));
        }
        assert!(flapping.connects(&a, LIMITS, 3));
        assert!(flapping.connects(&a, LIMITS, 1_002));
        assert!(!flapping.connects(&b, LIMITS, 4), "another is not");
        assert!(!flapping.connects(&a, LIMITS, 1_003), "it is over");
    }

    #[test]
    fn who_comes_now_and_then_is_not() {
        let (mut flapping, a) = (Flapping::default(), id("a"));
        for round in 0..20 {
            assert!(!flapping.connects(&a, LIMITS, round * 50));
        }
    }

    #[test]
    fn few_are_remembered_and_those_that_are_banned_longest() {
        let mut flapping = Flapping::default();
        let bad = id("bad");
        for now in 0..4 {
            flapping.connects(&bad, LIMITS, now);
        }
        for number in 0..CLIENTS_MAX + 10 {
            flapping.connects(&id(&number.to_string()), LIMITS, 5);
        }
        assert!(flapping.clients.len() <= CLIENTS_MAX);
        flapping.connects(&id("later"), LIMITS, 200);
        assert!(flapping.clients.len() < 10);
        assert!(flapping.connects(&bad, LIMITS, 200));
    }
}
