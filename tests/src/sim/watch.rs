//! A watch channel whose receivers wake in the order in which they began to wait.
//!
//! The one rule: no chance. tokio's own spreads its receivers over several lists by a random number, and two runs of one
//! seed would differ.

use std::cell::{Ref, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

struct Shared<T> {
    value: T,
    version: u64,
    senders: usize,
    waiting: Vec<Waker>,
}

pub struct Sender<T>(Rc<RefCell<Shared<T>>>);

pub struct Receiver<T> {
    shared: Rc<RefCell<Shared<T>>>,
    seen: u64,
}

/// The sender is gone.
#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the channel is closed")
    }
}

impl std::error::Error for Closed {}

/// Makes a channel that holds `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    pub fn new(value: T) -> Self {
        Self(Rc::new(RefCell::new(Shared { value, version: 0, senders: 1, waiting: Vec::new() })))
    }

    pub fn borrow(&self) -> Ref<'_, T> {
        Ref::map(self.0.borrow(), |shared| &shared.value)
    }

    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.borrow().version;
        Receiver { shared: self.0.clone(), seen }
    }

    pub fn send_replace(&self, value: T) -> T {
        let mut old = None;
        self.send_modify(|known| old = Some(std::mem::replace(known, value)));
        old.expect("it was just replaced")
    }

    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|known| {
            change(known);
            true
        });
    }

    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) {
        let woken = {
            let mut shared = self.0.borrow_mut();
            if !change(&mut shared.value) {
                return;
            }
            shared.version += 1;
            std::mem::take(&mut shared.waiting)
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.borrow_mut().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let woken = {
            let mut shared = self.0.borrow_mut();
            shared.senders -= 1;
            if shared.senders == 0 { std::mem::take(&mut shared.waiting) } else { Vec::new() }
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref::map(self.shared.borrow(), |shared| &shared.value)
    }

    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.borrow().version;
        self.borrow()
    }

    /// Returns once there is a value that was not seen yet.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        poll_fn(|context| {
            let mut shared = self.shared.borrow_mut();
            if shared.version != self.seen {
                self.seen = shared.version;
                return Poll::Ready(Ok(()));
            }
            if shared.senders == 0 {
                return Poll::Ready(Err(Closed));
            }
            if !shared.waiting.iter().any(|w| w.will_wake(context.waker())) {
                shared.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_that_came_meanwhile_is_seen_and_the_end_is_told() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(2);
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), 2);
        sender.send_if_modified(|_| false);
        drop(sender);
        assert!(receiver.changed().await.is_err());
    }
}
