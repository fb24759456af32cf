//! Tasks on a virtual clock: one thread, one order, the same for the same seed.
//!
//! The one rule: nothing happens but by a timer or a waker, and both run in the order in which they became due.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::sync::oneshot;

use super::places::Places;
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

/// A place among the tasks, and which of its tenants is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId {
    place: usize,
    tenant: u64,
}

/// A process: its tasks end with it, and stand still while it is paused.
struct Proc {
    id: ProcId,
    node_pauses: Rc<Cell<u32>>,
    pauses: Cell<u32>,
    deferred: RefCell<Vec<TaskId>>,
}

impl Proc {
    fn is_paused(&self) -> bool {
        self.pauses.get() > 0 || self.node_pauses.get() > 0
    }
}

struct Task {
    tenant: u64,
    proc: Rc<Proc>,
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
    queued: Arc<AtomicBool>,
}

/// What becomes due: a sleep of a task, or something that belongs to no process.
enum Due {
    Wake(TaskId),
    Run(Box<dyn FnOnce(&Sim)>),
    Carry(Rc<dyn Carries>),
    /// Whoever slept does not wait any more.
    Nothing,
}

/// Something that is under way between two machines.
pub trait Carries {
    fn arrive(self: Rc<Self>);
}

/// A timer in the heap, which shows the earliest first: its time, its number, and where what it does is kept.
type Timer = Reverse<(Micros, u64, usize)>;

type Woken = Arc<Mutex<VecDeque<TaskId>>>;

struct TaskWaker {
    task: TaskId,
    /// Is in the queue already: to be woken twice before its turn is to be woken once.
    queued: Arc<AtomicBool>,
    woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
        }
    }
}

/// The simulated world and its clock. Clones are handles to the same one.
#[derive(Clone)]
pub struct Sim(Rc<Core>);

struct Core {
    now: Cell<Micros>,
    next: Cell<u64>,
    timers: RefCell<BinaryHeap<Timer>>,
    /// What the timers do, each at its place, with the places that are free.
    due: RefCell<Places<(u64, Due)>>,
    tasks: RefCell<Places<Option<Task>>>,
    running: Cell<Option<TaskId>>,
    procs: RefCell<BTreeMap<ProcId, Rc<Proc>>>,
    node_pauses: RefCell<BTreeMap<Node, Rc<Cell<u32>>>>,
    woken: Woken,
    streams: RefCell<[Rng; Stream::COUNT]>,
    events: Cell<u64>,
    /// Stands for every event so far, in its order.
    hash: Cell<u64>,
    world: RefCell<World>,
}

impl Sim {
    pub fn new(seed: u64, world: World) -> Self {
        Self(Rc::new(Core {
            now: Cell::new(0),
            next: Cell::new(1),
            timers: RefCell::default(),
            due: RefCell::default(),
            tasks: RefCell::default(),
            running: Cell::new(None),
            procs: RefCell::default(),
            node_pauses: RefCell::default(),
            woken: Woken::default(),
            streams: RefCell::new(Stream::ALL.map(|stream| Rng::of(seed, stream))),
            events: Cell::new(0),
            hash: Cell::new(0xcbf2_9ce4_8422_2325),
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
        f(&mut self.0.streams.borrow_mut()[stream as usize])
    }

    /// Returns a duration from `least` to `most`, in microseconds.
    pub fn between(&self, stream: Stream, least: u64, most: u64) -> Micros {
        self.chance(stream, |rng| rng.between(least, most))
    }

    /// Runs `f` at `at`, as the outside world does: no pause holds it up.
    pub fn at(&self, at: Micros, f: impl FnOnce(&Sim) + 'static) {
        self.set_timer(at.max(self.now()), Due::Run(Box::new(f)));
    }

    /// Lets something arrive at `at`; no pause holds it up.
    pub fn carry(&self, at: Micros, carried: Rc<dyn Carries>) {
        self.set_timer(at, Due::Carry(carried));
    }

    fn set_timer(&self, at: Micros, what: Due) -> (usize, u64) {
        let number = self.fresh();
        let place = self.0.due.borrow_mut().put(|_| (number, what));
        self.0.timers.borrow_mut().push(Reverse((at, number, place)));
        (place, number)
    }

    fn forget_timer(&self, place: usize, number: u64) {
        if let Some((known, what)) = self.0.due.borrow_mut().at.get_mut(place)
            && *known == number
        {
            *what = Due::Nothing;
        }
    }

    pub fn start_process(&self, node: Node) -> ProcId {
        let id = ProcId(self.fresh());
        let proc = Proc {
            id,
            node_pauses: self.pauses_of(node),
            pauses: Cell::new(0),
            deferred: RefCell::default(),
        };
        self.0.procs.borrow_mut().insert(id, Rc::new(proc));
        id
    }

    fn pauses_of(&self, node: Node) -> Rc<Cell<u32>> {
        self.0.node_pauses.borrow_mut().entry(node).or_default().clone()
    }

    fn proc(&self, id: ProcId) -> Option<Rc<Proc>> {
        self.0.procs.borrow().get(&id).cloned()
    }

    pub fn is_alive(&self, proc: ProcId) -> bool {
        self.0.procs.borrow().contains_key(&proc)
    }

    /// Ends a process: its tasks are cut wherever they are.
    pub fn kill(&self, proc: ProcId) {
        let ended = self.tasks_of(proc);
        drop(ended);
    }

    fn tasks_of(&self, proc: ProcId) -> Vec<Task> {
        let Some(proc) = self.0.procs.borrow_mut().remove(&proc) else { return Vec::new() };
        let Places { at: tasks, free } = &mut *self.0.tasks.borrow_mut();
        let mut ended = Vec::new();
        for (place, task) in tasks.iter_mut().enumerate() {
            if task.as_ref().is_some_and(|t| t.proc.id == proc.id) {
                ended.extend(task.take());
                free.push(place);
            }
        }
        // In the order in which they were started.
        ended.sort_by_key(|task| task.tenant);
        ended
    }

    /// Ends one task.
    pub fn cut(&self, task: TaskId) {
        let ended = self.take_task(task);
        drop(ended);
    }

    fn take_task(&self, id: TaskId) -> Option<Task> {
        let Places { at: tasks, free } = &mut *self.0.tasks.borrow_mut();
        let task = tasks[id.place].take_if(|t| t.tenant == id.tenant)?;
        free.push(id.place);
        Some(task)
    }

    pub fn pause(&self, proc: ProcId) {
        if let Some(proc) = self.proc(proc) {
            proc.pauses.set(proc.pauses.get() + 1);
        }
    }

    pub fn resume(&self, proc: ProcId) {
        if let Some(proc) = self.proc(proc) {
            proc.pauses.set(proc.pauses.get().saturating_sub(1));
        }
        self.release();
    }

    /// Stops or continues a whole machine; its clock runs on.
    pub fn pause_node(&self, node: Node, by: i32) {
        let count = self.pauses_of(node);
        count.set(count.get().saturating_add_signed(by));
        self.release();
    }

    pub fn is_paused(&self, proc: ProcId) -> bool {
        self.proc(proc).is_some_and(|p| p.is_paused())
    }

    /// Returns whether a process lives and is not paused.
    pub fn runs(&self, proc: ProcId) -> bool {
        self.0.procs.borrow().get(&proc).is_some_and(|p| !p.is_paused())
    }

    pub fn node_is_paused(&self, node: Node) -> bool {
        self.pauses_of(node).get() > 0
    }

    fn release(&self) {
        let mut woken = self.0.woken.lock().unwrap_or_else(PoisonError::into_inner);
        for proc in self.0.procs.borrow().values().filter(|p| !p.is_paused()) {
            woken.extend(proc.deferred.borrow_mut().drain(..));
        }
    }

    /// Starts a task of `proc`; nothing is started in a process that is dead.
    pub fn spawn(&self, proc: ProcId, future: impl Future<Output = ()> + 'static) -> TaskId {
        let tenant = self.fresh();
        let Some(proc) = self.proc(proc) else { return TaskId { place: 0, tenant } };
        let future = Some(Box::pin(future) as Pin<Box<dyn Future<Output = ()>>>);
        let queued = Arc::new(AtomicBool::new(false));
        let mut waker = None;
        let place = self.0.tasks.borrow_mut().put(|place| {
            let (task, woken) = (TaskId { place, tenant }, self.0.woken.clone());
            let new = Waker::from(Arc::new(TaskWaker { task, queued: queued.clone(), woken }));
            waker = Some(new.clone());
            Some(Task { tenant, proc, future, waker: new, queued })
        });
        if let Some(waker) = waker {
            waker.wake();
        }
        TaskId { place, tenant }
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
                if self.poll(task) && self.with(&mut stop) {
                    return;
                }
            }
            let Some((at, what)) = self.next_due(until) else {
                self.0.now.set(until);
                return;
            };
            self.0.now.set(at);
            match what {
                Due::Wake(task) => {
                    self.wake(task);
                    continue;
                }
                Due::Nothing => continue,
                Due::Run(run) => run(self),
                Due::Carry(carried) => carried.arrive(),
            }
            self.note_event(0);
            if self.with(&mut stop) {
                return;
            }
        }
    }

    fn next_due(&self, until: Micros) -> Option<(Micros, Due)> {
        let mut timers = self.0.timers.borrow_mut();
        let Reverse((at, _, place)) = *timers.peek().filter(|t| t.0.0 <= until)?;
        timers.pop();
        let Places { at: due, free } = &mut *self.0.due.borrow_mut();
        free.push(place);
        Some((at, std::mem::replace(&mut due[place], (0, Due::Nothing)).1))
    }

    fn wake(&self, id: TaskId) {
        if let Some(task) = self.0.tasks.borrow().at[id.place].as_ref()
            && task.tenant == id.tenant
            && !task.queued.swap(true, Ordering::Relaxed)
        {
            self.0.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
        }
    }

    fn next_woken(&self) -> Option<TaskId> {
        self.0.woken.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Counts an event, and makes the hash stand for it too.
    fn note_event(&self, of: u64) {
        self.0.events.set(self.0.events.get() + 1);
        let hash = self.0.hash.get() ^ self.now().rotate_left(20) ^ of;
        self.0.hash.set(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
    }

    /// Returns a number that stands for all events so far and their times.
    pub fn hash(&self) -> u64 {
        self.0.hash.get()
    }

    /// Takes a task one step further; false where it may not, or is gone.
    fn poll(&self, id: TaskId) -> bool {
        let (mut future, waker) = {
            let mut tasks = self.0.tasks.borrow_mut();
            let task = tasks.at[id.place].as_mut().filter(|t| t.tenant == id.tenant);
            let Some(task) = task else { return false };
            if task.proc.is_paused() {
                // It stays queued, so that it is deferred once.
                task.proc.deferred.borrow_mut().push(id);
                return false;
            }
            task.queued.store(false, Ordering::Relaxed);
            let Some(future) = task.future.take() else { return false };
            (future, task.waker.clone())
        };
        self.note_event(id.tenant);
        self.0.running.set(Some(id));
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        self.0.running.set(None);
        if !done {
            let mut tasks = self.0.tasks.borrow_mut();
            let task = tasks.at[id.place].as_mut().filter(|t| t.tenant == id.tenant);
            if let Some(task) = task {
                task.future = Some(future);
                return true;
            }
        }
        // It has ended, or its process has meanwhile.
        let ended = self.take_task(id);
        drop(ended);
        true
    }

    /// Ends everything, so that nothing refers to anything any more.
    pub fn tear_down(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        self.with(|w| w.etcd.cancel_watches());
        let due = std::mem::take(&mut *self.0.due.borrow_mut());
        drop(due);
        let members = self.with(|w| std::mem::take(&mut w.members));
        drop(members);
    }

    pub fn sleep_until(&self, at: Micros) -> Sleep {
        Sleep { sim: self.clone(), at, timer: None }
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
    timer: Option<(usize, u64)>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.sim.now() >= self.at {
            return Poll::Ready(());
        }
        if self.timer.is_none() {
            let task = self.sim.0.running.get().expect("only tasks of this executor sleep");
            self.timer = Some(self.sim.set_timer(self.at, Due::Wake(task)));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((place, number)) = self.timer {
            self.sim.forget_timer(place, number);
        }
    }
}

/// Returns a duration in microseconds.
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
