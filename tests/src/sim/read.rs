//! Documents that were read before: keepers, sentinels, routers and the oracle all read the same ones.

use std::any::Any;
use std::collections::BTreeMap;
use std::rc::Rc;

use proto::Document;
use proto::document::{DecodeError, Reader, decode};

/// The last text under each key, and what was made of it.
#[derive(Default)]
pub struct Remembered {
    last: BTreeMap<String, (Vec<u8>, Rc<dyn Any>)>,
}

impl Reader for Remembered {
    fn read<D: Document + Clone + 'static>(
        &mut self,
        key: &str,
        text: &[u8],
    ) -> Result<D, DecodeError> {
        if let Some((known, document)) = self.last.get(key)
            && known == text
            && let Some(document) = document.downcast_ref::<D>()
        {
            return Ok(document.clone());
        }
        let document: D = decode(text)?;
        self.last.insert(key.to_owned(), (text.to_vec(), Rc::new(document.clone())));
        Ok(document)
    }
}
