//! Links between machines: delay, one-way cuts, and connections that keep the order of what they carry.
//!
//! The one rule: a cut loses datagrams and holds streams up. What a stream carries arrives late, when the link is whole
//! again, as TCP sends it once more.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use proto::{Moment, WallTime};
use tokio::sync::{Notify, mpsc};

use super::executor::{Carries, Micros, Node, ProcId, Sim, micros};
use super::rng::Stream;

/// The state of all links.
pub struct Net {
    cuts: BTreeMap<(Node, Node), u32>,
    slow: BTreeMap<(Node, Node), Micros>,
    healed: Rc<Notify>,
    /// Carries what is on its way; it is nobody's, and never paused.
    pub wires: Option<ProcId>,
}

impl Default for Net {
    fn default() -> Self {
        let (cuts, slow) = (BTreeMap::new(), BTreeMap::new());
        Self { cuts, slow, healed: Rc::new(Notify::new()), wires: None }
    }
}

impl Net {
    pub fn is_cut(&self, from: Node, to: Node) -> bool {
        from != to && self.cuts.get(&(from, to)).is_some_and(|n| *n > 0)
    }

    pub fn cut(&mut self, from: Node, to: Node) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    pub fn heal(&mut self, from: Node, to: Node) {
        if let Some(count) = self.cuts.get_mut(&(from, to)) {
            *count = count.saturating_sub(1);
        }
        self.healed.notify_waiters();
    }

    /// Adds to the delay of a link; zero makes it as fast as it was.
    pub fn slow_down(&mut self, from: Node, to: Node, by: Micros) {
        self.slow.insert((from, to), by);
    }
}

impl Sim {
    fn delay(&self, from: Node, to: Node) -> Micros {
        if from == to {
            return self.between(Stream::Network, 10, 60);
        }
        let extra = self.with(|w| w.net.slow.get(&(from, to)).copied().unwrap_or(0));
        let base = self.chance(Stream::Network, |rng| match rng.percent(2) {
            true => rng.between(1_000, 20_000),
            false => rng.between(100, 600),
        });
        base + if extra > 0 { self.between(Stream::Network, extra / 2, extra) } else { 0 }
    }

    /// Returns once something sent now over a stream has arrived; while the link is cut, not at all.
    pub async fn pass(&self, from: Node, to: Node) {
        self.sleep(self.delay(from, to)).await;
        self.until_whole(from, to).await;
    }

    async fn until_whole(&self, from: Node, to: Node) {
        loop {
            let healed = self.with(|w| w.net.is_cut(from, to).then(|| w.net.healed.clone()));
            let Some(healed) = healed else { return };
            healed.notified().await;
            // Sent again after a time-out that has grown meanwhile.
            self.sleep(self.between(Stream::Network, 1_000, 300_000)).await;
        }
    }

    /// Returns whether a datagram sent now arrives.
    pub async fn datagram(&self, from: Node, to: Node) -> bool {
        self.sleep(self.delay(from, to)).await;
        !self.with(|w| w.net.is_cut(from, to))
    }

    /// Returns whether a question and its answer take no longer than they do on links that are well.
    pub fn is_near(&self, one: Node, other: Node) -> bool {
        let well = |net: &Net, from, to| {
            !net.is_cut(from, to) && net.slow.get(&(from, to)).is_none_or(|by| *by == 0)
        };
        self.with(|w| well(&w.net, one, other) && well(&w.net, other, one))
    }

    /// Makes one direction of a connection. The far end closes once the near one is dropped and the link lets that pass.
    pub fn wire<T: 'static>(&self, from: Node, to: Node) -> (Near<T>, mpsc::UnboundedReceiver<T>) {
        let (far, received) = mpsc::unbounded_channel();
        let sent = Sent { items: VecDeque::new(), ended: false, moves: false, far: Some(far) };
        let wire = Wire { sim: self.clone(), from, to, sent: RefCell::new(sent) };
        (Near(Rc::new(wire)), received)
    }

    /// Runs something that belongs to no machine.
    pub fn on_the_wire(&self, future: impl Future<Output = ()> + 'static) {
        let known = self.with(|w| w.net.wires);
        let proc = known.unwrap_or_else(|| {
            let proc = self.start_process(Node::Etcd);
            self.with(|w| w.net.wires = Some(proc));
            proc
        });
        self.spawn(proc, future);
    }

    /// Returns the clock of a machine.
    pub fn host(&self, node: Node) -> Host {
        let rate_ppm = self.with(|w| w.clock_rates.get(&node).copied().unwrap_or(0));
        Host { sim: self.clone(), node, rate_ppm }
    }
}

/// The end of a connection that sends.
pub struct Near<T: 'static>(Rc<Wire<T>>);

/// One direction of a connection.
struct Wire<T> {
    sim: Sim,
    from: Node,
    to: Node,
    sent: RefCell<Sent<T>>,
}

/// What was sent and has not arrived.
struct Sent<T> {
    items: VecDeque<T>,
    /// The near end was dropped; that arrives after all items.
    ended: bool,
    /// Something of it is between the two machines.
    moves: bool,
    far: Option<mpsc::UnboundedSender<T>>,
}

/// The far end is closed.
#[derive(Debug)]
pub struct Lost;

impl<T: 'static> Near<T> {
    /// Sends one more; it arrives after all that was sent before.
    pub fn send(&self, item: T) -> Result<(), Lost> {
        if self.is_closed() {
            return Err(Lost);
        }
        self.0.sent.borrow_mut().items.push_back(item);
        self.0.set_off();
        Ok(())
    }

    pub fn is_closed(&self) -> bool {
        self.0.sent.borrow().far.as_ref().is_none_or(mpsc::UnboundedSender::is_closed)
    }
}

impl<T: 'static> Drop for Near<T> {
    fn drop(&mut self) {
        self.0.sent.borrow_mut().ended = true;
        // The world may be in use just now, so its links are looked at later.
        let (sim, wire) = (&self.0.sim, self.0.clone());
        sim.at(sim.now(), move |_| wire.set_off());
    }
}

impl<T: 'static> Wire<T> {
    fn set_off(self: &Rc<Self>) {
        if !std::mem::replace(&mut self.sent.borrow_mut().moves, true) {
            let at = self.sim.now() + self.sim.delay(self.from, self.to);
            self.sim.carry(at, self.clone());
        }
    }
}

impl<T: 'static> Carries for Wire<T> {
    fn arrive(self: Rc<Self>) {
        let (from, to) = (self.from, self.to);
        if self.sim.with(|w| w.net.is_cut(from, to)) {
            let sim = self.sim.clone();
            return sim.clone().on_the_wire(async move {
                sim.until_whole(from, to).await;
                self.arrive();
            });
        }
        let mut sent = self.sent.borrow_mut();
        sent.moves = false;
        match sent.items.pop_front() {
            Some(item) => drop(sent.far.as_ref().map(|far| far.send(item))),
            None => sent.far = None,
        }
        let more = !sent.items.is_empty() || sent.ended && sent.far.is_some();
        drop(sent);
        if more {
            self.set_off();
        }
    }
}

/// One machine, as its processes see it: with its own clock.
#[derive(Clone)]
pub struct Host {
    pub sim: Sim,
    pub node: Node,
    rate_ppm: i64,
}

/// What the boot clocks begin with, so that nothing rests on zero.
const BOOTED: u64 = 1_000_000_000;
/// 2026-01-01.
const WALL_MS: i64 = 1_767_225_600_000;

impl Host {
    fn local(&self, at: Micros) -> u64 {
        BOOTED + (i128::from(at) * i128::from(1_000_000 + self.rate_ppm) / 1_000_000) as u64
    }

    pub fn now(&self) -> Moment {
        Moment::since_boot(Duration::from_micros(self.local(self.sim.now())))
    }

    pub fn wall(&self) -> WallTime {
        WallTime(WALL_MS + (self.sim.now() / 1000) as i64)
    }

    /// Returns the true time at which this clock shows `moment`.
    pub fn true_time(&self, moment: Moment) -> Micros {
        let local = micros(moment.boot_time()).saturating_sub(BOOTED);
        (i128::from(local) * 1_000_000 / i128::from(1_000_000 + self.rate_ppm)) as u64
    }

    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    pub async fn sleep_until(&self, moment: Moment) {
        if self.now() < moment {
            // One more than the whole microseconds of that time: this clock shows `moment` then.
            self.sim.sleep_until(self.true_time(moment) + 1).await;
        }
    }

    /// Waits for `future`, at most `duration` of this clock.
    pub async fn within<R>(
        &self,
        duration: Duration,
        future: impl Future<Output = R>,
    ) -> Option<R> {
        tokio::select! {
            biased;
            result = future => Some(result),
            () = self.sleep(duration) => None,
        }
    }
}
