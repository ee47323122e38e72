//! What happens to the nodes of a simulation, and what its clients do.

use super::ctx::{Conn, Ctx, Event, Msg, Undo};
use super::message::{Input, Want};
use super::net::{Cut, MS};
use super::process::Process;
use super::topics::{ALL, FILTERS, WILLS};
use super::world::World;

/// The newest version knows it.
const LEVEL_MAX: u32 = 3;
/// A client that waits for its CONNACK goes elsewhere, each time it is looked at.
const GIVE_UP_PERCENT: u64 = 15;

impl World {
    /// One fault, and when the next one comes.
    pub fn fault(&mut self) {
        if self.ctx.healed {
            return;
        }
        let ctx = &mut self.ctx;
        let (gap, lasts) = (ctx.rng.range(100, 1_200), ctx.rng.range(50, 3_500));
        ctx.after(gap * MS, Event::Fault);
        ctx.calm_since = ctx.now;
        let nodes = self.processes.len();
        let (node, other) = (ctx.rng.index(nodes), ctx.rng.index(nodes));
        let lasts = lasts * MS;
        match ctx.rng.below(100) {
            0..=17 => self.crash(node, lasts),
            18..=20 => (0..nodes).for_each(|node| self.crash(node, lasts)),
            21..=38 => self.pause(node, lasts),
            39..=54 => self.cut(&[(node, other), (other, node)], lasts),
            55..=66 => self.cut(&[(node, other)], lasts),
            67..=76 => {
                let ways: Vec<(usize, usize)> = (0..nodes)
                    .flat_map(|other| [(node, other), (other, node)])
                    .collect();
                self.cut(&ways, lasts);
            }
            77..=80 => {
                let ways: Vec<(usize, usize)> = (0..nodes).map(|other| (other, node)).collect();
                self.cut(&ways, lasts);
            }
            81..=86 => self.end_streams(node, other),
            87..=91 => {
                let step = ctx.rng.below(7_200_000) as i64 - 3_600_000;
                ctx.note(|| format!("fault: the wall clock of node {node} steps by {step} ms"));
                ctx.machines[node].wall_offset_ms += step;
            }
            92..=95 => {
                ctx.note(|| format!("fault: node {node} applies slowly"));
                ctx.machines[node].apply_delay = ctx.rng.range(20, 600) * MS;
                ctx.after(lasts, Event::Undo(Undo::Speed));
            }
            _ => {
                ctx.note(|| "fault: all is slow".into());
                ctx.net.slowness = ctx.rng.range(10, 150) * MS;
                ctx.commit_max = ctx.rng.range(20, 200) * MS;
                ctx.after(lasts, Event::Undo(Undo::Speed));
            }
        }
    }

    pub fn undo(&mut self, undo: Undo) {
        self.ctx.calm_since = self.ctx.now;
        match undo {
            Undo::Start(node) => self.start(node),
            Undo::Continue(node) => self.resume(node),
            Undo::Heal(from, to) => self.heal_way(from, to),
            Undo::Speed => {
                self.ctx.net.slowness = 0;
                self.ctx.commit_max = 8 * MS;
                for machine in &mut self.ctx.machines {
                    machine.apply_delay = 0;
                }
            }
        }
    }

    /// All faults end.
    pub fn heal(&mut self) {
        self.ctx.healed = true;
        self.ctx.note(|| "healed".into());
        self.undo(Undo::Speed);
        for node in 0..self.processes.len() {
            for other in 0..self.processes.len() {
                self.heal_way(node, other);
            }
            self.resume(node);
            self.start(node);
        }
    }

    fn start(&mut self, node: usize) {
        if self.processes[node].is_none() {
            // Some come back as a newer version.
            let newer = u32::from(self.ctx.rng.percent(30));
            // With a T that was changed in the configuration meanwhile.
            let t_times = 1 + u64::from(self.ctx.rng.percent(25));
            let machine = &mut self.ctx.machines[node];
            machine.level = (machine.level + newer).min(LEVEL_MAX);
            machine.t_times = t_times;
            machine.running = true;
            let level = machine.level;
            self.ctx
                .note(|| format!("node {node} starts, of level {level}"));
            self.processes[node] = Some(Process::start(&mut self.ctx, node));
        }
    }

    fn crash(&mut self, node: usize, lasts: u64) {
        if self.processes[node].take().is_none() {
            return;
        }
        let ctx = &mut self.ctx;
        ctx.note(|| format!("fault: node {node} is killed"));
        let machine = &mut ctx.machines[node];
        machine.generation += 1;
        (machine.running, machine.paused) = (false, false);
        self.held[node].clear();
        for log in ctx.logs.values_mut() {
            log.ended(node);
        }
        ctx.oracle.process_ended(node);
        ctx.after(lasts, Event::Undo(Undo::Start(node)));
        for conn in 0..ctx.conns.len() {
            if ctx.conns[conn].node == node && ctx.conns[conn].is_open {
                ctx.closed(conn);
            }
        }
        for other in 0..self.processes.len() {
            self.end_streams(node, other);
        }
    }

    fn pause(&mut self, node: usize, lasts: u64) {
        let machine = &mut self.ctx.machines[node];
        if machine.works() {
            machine.paused = true;
            self.ctx.note(|| format!("fault: node {node} is paused"));
            self.ctx.after(lasts, Event::Undo(Undo::Continue(node)));
        }
    }

    fn resume(&mut self, node: usize) {
        if std::mem::take(&mut self.ctx.machines[node].paused) {
            self.ctx.note(|| format!("node {node} continues"));
            for input in std::mem::take(&mut self.held[node]) {
                self.input(node, input);
            }
        }
    }

    fn cut(&mut self, ways: &[(usize, usize)], lasts: u64) {
        let cut = match self.ctx.rng.percent(60) {
            true => Cut::Dropping,
            false => Cut::Stalling,
        };
        self.ctx.note(|| format!("fault: {cut:?} {ways:?}"));
        for (from, to) in ways.iter().filter(|(from, to)| from != to) {
            self.ctx.net.cut(*from, *to, cut, self.ctx.now);
            self.ctx.after(lasts, Event::Undo(Undo::Heal(*from, *to)));
            if cut == Cut::Dropping {
                self.tell_broken(*from, *to);
            }
        }
    }

    fn end_streams(&mut self, a: usize, b: usize) {
        if a != b {
            self.ctx.net.end_streams(a, b);
            self.tell_broken(a, b);
        }
    }

    fn tell_broken(&mut self, a: usize, b: usize) {
        for (node, other) in [(a, b), (b, a)] {
            self.input(node, Input::LinkBroken(other));
        }
    }

    fn heal_way(&mut self, from: usize, to: usize) {
        for packet in self.ctx.net.heal(from, to) {
            self.ctx.after(0, Event::Arrive { from, to, packet });
        }
    }

    // ---- clients ----

    pub fn client_acts(&mut self, client: usize) {
        let ctx = &mut self.ctx;
        let pause = ctx.rng.range(10, 150) * MS;
        ctx.after(pause, Event::Client(client));
        let of_client = |conn: &&Conn| conn.client == client && conn.is_open;
        let open: Vec<usize> = (0..ctx.conns.len())
            .filter(|conn| of_client(&&ctx.conns[*conn]))
            .collect();
        // The last one only listens, for as long as it can.
        let listens = client + 1 == self.clients;
        let Some(conn) = ctx.rng.pick(&open) else {
            return connect(ctx, client, listens);
        };
        if !ctx.conns[conn].is_connected {
            if !listens && ctx.rng.percent(GIVE_UP_PERCENT) {
                want(ctx, conn, Want::Vanish);
                ctx.conns[conn].is_open = false;
            }
            return;
        }
        let roll = ctx.rng.below(100);
        let filter = ctx.rng.index(FILTERS.len());
        match roll {
            0..=2 if listens => want(ctx, conn, Want::Subscribe(ALL)),
            _ if listens => {}
            0..=17 => want(ctx, conn, Want::Subscribe(filter)),
            18..=22 => want(ctx, conn, Want::Unsubscribe(filter)),
            23..=26 => want(ctx, conn, Want::Leave),
            27..=30 => want(ctx, conn, Want::Vanish),
            31..=37 if open.len() < 3 => connect(ctx, client, false),
            _ => publish(ctx, conn),
        }
    }
}

fn want(ctx: &mut Ctx, conn: usize, want: Want) {
    let delay = ctx.rng.below(MS);
    if matches!(want, Want::Leave | Want::Vanish) {
        ctx.oracle.gone(conn, ctx.now);
    }
    // One after the other, as they are read.
    let node = ctx.conns[conn].node;
    ctx.input(node, delay / 1_000, Input::Client { conn, want });
}

fn publish(ctx: &mut Ctx, conn: usize) {
    let (topic, retain) = (ctx.rng.index(WILLS), ctx.rng.percent(20));
    let message = ctx.messages.len() as u64;
    ctx.conns[conn].numbers += 1;
    ctx.messages.push(Msg {
        conn,
        topic,
        number: ctx.conns[conn].numbers,
        retain,
        is_will: false,
    });
    want(ctx, conn, Want::Publish(message));
}

fn connect(ctx: &mut Ctx, client: usize, listens: bool) {
    let node = ctx.rng.index(ctx.machines.len());
    if !ctx.machines[node].works() {
        return;
    }
    let conn = ctx.conns.len();
    let has_will = !listens && ctx.rng.percent(60);
    let delay_s = ctx.rng.pick(&[0, 0, 1]).unwrap_or(0);
    let expiry_s = ctx.rng.pick(&[0, 0, 1, 20]).unwrap_or(0);
    let will = has_will.then(|| {
        ctx.messages.push(Msg {
            conn,
            topic: WILLS,
            number: 0,
            retain: false,
            is_will: true,
        });
        (delay_s, ctx.messages.len() as u64 - 1)
    });
    ctx.conns.push(Conn {
        client,
        node,
        is_open: true,
        is_connected: false,
        will,
        expiry_s: if listens { 0 } else { expiry_s },
        numbers: 0,
    });
    ctx.oracle.began(conn, ctx.now);
    want(ctx, conn, Want::Connect);
}
