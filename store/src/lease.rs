//! A lease of our own, with the local deadline counted from the send time.
