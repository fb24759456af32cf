//! Tasks on a virtual clock: one thread, one order, the same for the same seed.
//!
//! The one rule: nothing happens but by a timer or a waker, and both run in the order in which they became due.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::sync::oneshot;

use super::rng::{Rng, Stream};
use super::world::World;

/// Microseconds of simulated time.
pub type Micros = u64;

/// One machine of the simulated world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    Member(usize),
    Sentinel(usize),
    Etcd,
    Router,
    Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(u64);

/// A process: its tasks end with it, and stand still while it is paused.
struct Proc {
    node: Node,
    pauses: u32,
    deferred: Vec<TaskId>,
}

struct Task {
    proc: ProcId,
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
}

enum Timer {
    Wake(Waker),
    Run(Box<dyn FnOnce(&Sim)>),
}

type Woken = Arc<Mutex<VecDeque<TaskId>>>;

struct TaskWaker {
    task: TaskId,
    woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
    }
}

/// The simulated world and its clock. Clones are handles to the same one.
#[derive(Clone)]
pub struct Sim(Rc<Core>);

struct Core {
    now: Cell<Micros>,
    next: Cell<u64>,
    timers: RefCell<BTreeMap<(Micros, u64), Timer>>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    procs: RefCell<BTreeMap<ProcId, Proc>>,
    node_pauses: RefCell<BTreeMap<Node, u32>>,
    woken: Woken,
    streams: RefCell<BTreeMap<Stream, Rng>>,
    seed: u64,
    events: Cell<u64>,
    world: RefCell<World>,
}

impl Sim {
    pub fn new(seed: u64, world: World) -> Self {
        Self(Rc::new(Core {
            now: Cell::new(0),
            next: Cell::new(1),
            timers: RefCell::default(),
            tasks: RefCell::default(),
            procs: RefCell::default(),
            node_pauses: RefCell::default(),
            woken: Woken::default(),
            streams: RefCell::default(),
            seed,
            events: Cell::new(0),
            world: RefCell::new(world),
        }))
    }

    pub fn now(&self) -> Micros {
        self.0.now.get()
    }

    /// Returns how many task steps and timers there were.
    pub fn events(&self) -> u64 {
        self.0.events.get()
    }

    /// Looks at or changes the world. Never across an await.
    pub fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut self.0.world.borrow_mut())
    }

    /// Returns a fresh number.
    pub fn fresh(&self) -> u64 {
        let next = self.0.next.get();
        self.0.next.set(next + 1);
        next
    }

    /// Draws from a stream of chance; each stream is apart, so that one draw more in one leaves the others alone.
    pub fn chance<R>(&self, stream: Stream, f: impl FnOnce(&mut Rng) -> R) -> R {
        let mut streams = self.0.streams.borrow_mut();
        f(streams.entry(stream).or_insert_with(|| Rng::of(self.0.seed, stream)))
    }

    /// Returns a duration from `least` to `most`, in microseconds.
    pub fn between(&self, stream: Stream, least: u64, most: u64) -> Micros {
        self.chance(stream, |rng| rng.between(least, most))
    }

    /// Runs `f` at `at`, as the outside world does: no pause holds it up.
    pub fn at(&self, at: Micros, f: impl FnOnce(&Sim) + 'static) {
        let key = (at.max(self.now()), self.fresh());
        self.0.timers.borrow_mut().insert(key, Timer::Run(Box::new(f)));
    }

    pub fn start_process(&self, node: Node) -> ProcId {
        let id = ProcId(self.fresh());
        self.0.procs.borrow_mut().insert(id, Proc { node, pauses: 0, deferred: Vec::new() });
        id
    }

    pub fn is_alive(&self, proc: ProcId) -> bool {
        self.0.procs.borrow().contains_key(&proc)
    }

    /// Ends a process: its tasks are cut wherever they are.
    pub fn kill(&self, proc: ProcId) {
        if self.0.procs.borrow_mut().remove(&proc).is_none() {
            return;
        }
        let mut tasks = self.0.tasks.borrow_mut();
        let ended: Vec<TaskId> =
            tasks.iter().filter(|(_, t)| t.proc == proc).map(|(id, _)| *id).collect();
        let ended: Vec<Task> = ended.iter().filter_map(|id| tasks.remove(id)).collect();
        drop(tasks);
        drop(ended);
    }

    /// Ends one task.
    pub fn cut(&self, task: TaskId) {
        let ended = self.0.tasks.borrow_mut().remove(&task);
        drop(ended);
    }

    pub fn pause(&self, proc: ProcId) {
        if let Some(proc) = self.0.procs.borrow_mut().get_mut(&proc) {
            proc.pauses += 1;
        }
    }

    pub fn resume(&self, proc: ProcId) {
        if let Some(proc) = self.0.procs.borrow_mut().get_mut(&proc) {
            proc.pauses = proc.pauses.saturating_sub(1);
        }
        self.release();
    }

    /// Stops or continues a whole machine; its clock runs on.
    pub fn pause_node(&self, node: Node, by: i32) {
        let mut pauses = self.0.node_pauses.borrow_mut();
        let count = pauses.entry(node).or_default();
        *count = count.saturating_add_signed(by);
        drop(pauses);
        self.release();
    }

    pub fn is_paused(&self, proc: ProcId) -> bool {
        let procs = self.0.procs.borrow();
        procs.get(&proc).is_some_and(|p| p.pauses > 0 || self.node_is_paused(p.node))
    }

    pub fn node_is_paused(&self, node: Node) -> bool {
        self.0.node_pauses.borrow().get(&node).is_some_and(|n| *n > 0)
    }

    fn release(&self) {
        let mut released = Vec::new();
        for proc in self.0.procs.borrow_mut().values_mut() {
            if proc.pauses == 0 && !self.node_is_paused(proc.node) {
                released.append(&mut proc.deferred);
            }
        }
        self.0.woken.lock().unwrap_or_else(PoisonError::into_inner).extend(released);
    }

    /// Starts a task of `proc`; nothing is started in a process that is dead.
    pub fn spawn(&self, proc: ProcId, future: impl Future<Output = ()> + 'static) -> TaskId {
        let id = TaskId(self.fresh());
        if self.is_alive(proc) {
            let waker = Waker::from(Arc::new(TaskWaker { task: id, woken: self.0.woken.clone() }));
            let task = Task { proc, future: Some(Box::pin(future)), waker };
            self.0.tasks.borrow_mut().insert(id, task);
            self.0.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
        }
        id
    }

    /// Starts a task and returns where its result comes out; an error there means that it was cut.
    pub fn call<R: 'static>(
        &self,
        proc: ProcId,
        future: impl Future<Output = R> + 'static,
    ) -> (TaskId, oneshot::Receiver<R>) {
        let (sender, receiver) = oneshot::channel();
        let task = self.spawn(proc, async move {
            let _ = sender.send(future.await);
        });
        (task, receiver)
    }

    /// Runs everything that is due until `until`, or until `stop` says so.
    pub fn run_until(&self, until: Micros, mut stop: impl FnMut(&mut World) -> bool) {
        loop {
            while let Some(task) = self.next_woken() {
                self.poll(task);
                if self.with(&mut stop) {
                    return;
                }
            }
            let mut timers = self.0.timers.borrow_mut();
            let Some(due) = timers.first_entry().filter(|e| e.key().0 <= until) else {
                self.0.now.set(until);
                return;
            };
            let ((at, _), timer) = due.remove_entry();
            drop(timers);
            self.0.now.set(at);
            match timer {
                Timer::Wake(waker) => waker.wake(),
                Timer::Run(run) => {
                    self.0.events.set(self.0.events.get() + 1);
                    run(self);
                }
            }
            if self.with(&mut stop) {
                return;
            }
        }
    }

    fn next_woken(&self) -> Option<TaskId> {
        self.0.woken.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn poll(&self, id: TaskId) {
        let Some((proc, future, waker)) = self.0.tasks.borrow_mut().get_mut(&id).and_then(|t| {
            let future = t.future.take()?;
            Some((t.proc, future, t.waker.clone()))
        }) else {
            return;
        };
        if self.is_paused(proc) {
            if let Some(task) = self.0.tasks.borrow_mut().get_mut(&id) {
                task.future = Some(future);
            }
            if let Some(proc) = self.0.procs.borrow_mut().get_mut(&proc)
                && !proc.deferred.contains(&id)
            {
                proc.deferred.push(id);
            }
            return;
        }
        self.0.events.set(self.0.events.get() + 1);
        let mut future = future;
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = self.0.tasks.borrow_mut();
        match tasks.get_mut(&id) {
            Some(task) if !done => task.future = Some(future),
            Some(_) => {
                tasks.remove(&id);
                drop(tasks);
            }
            // Its process has ended meanwhile.
            None => drop(tasks),
        }
    }

    /// Ends everything, so that nothing refers to anything any more.
    pub fn tear_down(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        let timers = std::mem::take(&mut *self.0.timers.borrow_mut());
        drop(timers);
        let members = self.with(|w| std::mem::take(&mut w.members));
        drop(members);
    }

    pub fn sleep_until(&self, at: Micros) -> Sleep {
        Sleep { sim: self.clone(), at, set: false }
    }

    /// Sleeps `micros` of true time.
    pub fn sleep(&self, micros: Micros) -> Sleep {
        self.sleep_until(self.now() + micros)
    }

    /// Waits for `future`, at most `micros` of true time; `None` when they are over.
    pub async fn within<R>(&self, micros: Micros, future: impl Future<Output = R>) -> Option<R> {
        tokio::select! {
            biased;
            result = future => Some(result),
            () = self.sleep(micros) => None,
        }
    }
}

pub struct Sleep {
    sim: Sim,
    at: Micros,
    set: bool,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.sim.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.set {
            self.set = true;
            let key = (self.at, self.sim.fresh());
            let timer = Timer::Wake(context.waker().clone());
            self.sim.0.timers.borrow_mut().insert(key, timer);
        }
        Poll::Pending
    }
}

/// Returns a duration in microseconds.
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
