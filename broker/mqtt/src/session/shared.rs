//! What is particular to shared subscriptions in the outbound half of a session: how ready it is for one more copy, and
//! what it gives back for another member.

use super::message::{Delivery, Readiness};
use super::outbound::Outbound;
use crate::topic::SubscriptionFilter;

impl Outbound {
    /// Takes out the shared copies that another member should get, in order, where `is_wanted` says
    /// so of their subscription: those never sent and QoS 1 without PUBACK. QoS 2 that was sent
    /// stays, to be completed with this client or dropped when its session ends. [MQTT-4.8.2-4],
    /// [MQTT-4.8.2-5]
    ///
    /// They count as accepted again where they go, so the caller counts what this returns as
    /// dropped here. To be called when the connection is over: the window takes them as done.
    pub fn take_undelivered_shared(
        &mut self,
        is_wanted: impl Fn(&SubscriptionFilter) -> bool,
    ) -> Vec<Delivery> {
        let wanted = |copy: &Delivery| copy.share.as_ref().is_some_and(|s| is_wanted(s.filter()));
        let mut taken = self.flight.take_shared_qos1(wanted);
        taken.append(&mut self.queue.extract(wanted));
        taken
    }

    /// Takes out the copies of a shared subscription that were never sent, in order: the client has
    /// left it, and completes only what it was sent [MQTT-3.10.4-3].
    pub fn take_unsent_shared(&mut self, filter: &SubscriptionFilter) -> Vec<Delivery> {
        let is_of = |copy: &Delivery| copy.share.as_ref().is_some_and(|s| s.filter() == filter);
        self.queue.extract(is_of)
    }

    /// How well the client can take one more shared copy of this size.
    pub fn readiness(&self, bytes: usize) -> Readiness {
        let Some(link) = &self.link else {
            return Readiness::Away;
        };
        if self.is_full_for(bytes) && !self.is_empty() {
            Readiness::Full
        } else if link.congested {
            Readiness::Blocked
        } else if self.flight.span() >= link.window() {
            Readiness::Waiting
        } else {
            Readiness::Ready
        }
    }
}
