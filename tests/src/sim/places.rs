//! Where tasks and timers are kept: at numbers that are small and used again.

/// Things at numbered places, of which some are free again.
pub struct Places<T> {
    pub at: Vec<T>,
    pub free: Vec<usize>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { at: Vec::new(), free: Vec::new() }
    }
}

impl<T> Places<T> {
    /// Puts a thing at a free place.
    pub fn put(&mut self, thing: impl FnOnce(usize) -> T) -> usize {
        let place = self.free.pop().unwrap_or(self.at.len());
        let thing = thing(place);
        match self.at.get_mut(place) {
            Some(free) => *free = thing,
            None => self.at.push(thing),
        }
        place
    }
}
