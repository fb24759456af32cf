//! WAL made byte by byte, with everything that a real server writes only now and then.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use keeper::postgres::wal_files::Segment;
use keeper::postgres::wal_pages::WalDir;
use proto::{Lsn, SystemIdentifier, Timeline};

pub const SEGMENT: u32 = 1 << 20;
const PAGE: u64 = 8192;
const SYSTEM: u64 = 0x1234_5678_9ABC_DEF0;

/// A log under construction.
#[derive(Clone)]
pub struct MadeWal {
    files: BTreeMap<Segment, Vec<u8>>,
    pub timeline: Timeline,
    pub at: u64,
    previous: u64,
    /// Each record: its begin and its end.
    pub records: Vec<(Lsn, Lsn)>,
}

impl MadeWal {
    /// A log that begins in its third segment with a checkpoint record.
    pub fn new() -> Self {
        let at = 2 * u64::from(SEGMENT);
        let mut wal = Self {
            files: BTreeMap::new(),
            timeline: Timeline(1),
            at,
            previous: 0,
            records: Vec::new(),
        };
        wal.append(&[7; 90], 0, 0x10);
        wal
    }

    pub fn checkpoint(&self) -> Lsn {
        self.records[0].0
    }

    /// Appends a record of any length.
    pub fn append(&mut self, data: &[u8], manager: u8, info: u8) {
        let bytes = record(data, manager, info, self.previous);
        let start = self.begin();
        self.write(&bytes, bytes.len());
        self.finish(start);
    }

    /// Appends a switch to the next segment.
    pub fn switch(&mut self) {
        self.append(&[], 0, 0x40);
        // The last page and the pages between hold zeroes; PostgreSQL writes headers there, which nothing reads.
        self.at = self.at.next_multiple_of(u64::from(SEGMENT));
        self.records.last_mut().unwrap().1 = Lsn(self.at);
    }

    /// Writes the first page's part of a long record, as a server that crashed in its middle did, and goes on as
    /// PostgreSQL does after its restart: on the next page, with the mark that the rest never comes.
    pub fn crash_and_overwrite(&mut self) {
        let bytes = record(&[9; 3 * PAGE as usize], 10, 0, self.previous);
        let start = self.begin();
        let room = (PAGE - start % PAGE) as usize;
        self.write(&bytes[..room.min(bytes.len())], bytes.len());
        self.at = self.at.next_multiple_of(PAGE);
        self.page_header(0x8, 0);
        let bytes = record(&[1; 16], 0, 0xD0, self.previous);
        let start = self.at;
        self.write(&bytes, bytes.len());
        self.finish(start);
    }

    /// Goes on as a promoted standby does: in a copy of the segment, under the next timeline.
    pub fn promote(&mut self, to: Timeline) -> Lsn {
        let fork = self.at;
        let old = Segment::at(self.timeline, Lsn(fork), SEGMENT);
        if let Some(bytes) = self.files.get(&old) {
            let mut copy = bytes[..(fork % u64::from(SEGMENT)) as usize].to_vec();
            copy.resize(SEGMENT as usize, 0);
            self.files.insert(Segment { timeline: to, ..old }, copy);
        }
        self.timeline = to;
        Lsn(fork)
    }

    /// Zeroes all bytes from `lsn` on, and removes later segments, on every timeline.
    pub fn cut(&mut self, lsn: Lsn) {
        let number = lsn.0 / u64::from(SEGMENT);
        self.files.retain(|segment, _| segment.number <= number);
        for (segment, bytes) in &mut self.files {
            if segment.number == number {
                bytes[(lsn.0 % u64::from(SEGMENT)) as usize..].fill(0);
            }
        }
    }

    /// Changes one byte of this timeline's log. Returns false where it has none.
    pub fn flip(&mut self, lsn: Lsn, mask: u8) -> bool {
        let segment = Segment::at(self.timeline, lsn, SEGMENT);
        let Some(bytes) = self.files.get_mut(&segment) else { return false };
        bytes[(lsn.0 % u64::from(SEGMENT)) as usize] ^= mask;
        true
    }

    pub fn remove(&mut self, segment: Segment) {
        self.files.remove(&segment).expect("it is there");
    }

    pub fn save(&self, dir: &Path) -> WalDir {
        for (segment, bytes) in &self.files {
            fs::write(dir.join(segment.file_name(SEGMENT)), bytes).unwrap();
        }
        WalDir {
            pg_wal: dir.to_owned(),
            segment_size: SEGMENT,
            system_identifier: SystemIdentifier(SYSTEM),
            major: 15,
        }
    }

    fn begin(&mut self) -> u64 {
        if self.at.is_multiple_of(PAGE) {
            self.page_header(0, 0);
        }
        self.at
    }

    fn finish(&mut self, start: u64) {
        self.at = self.at.next_multiple_of(8);
        self.previous = start;
        self.records.push((Lsn(start), Lsn(self.at)));
    }

    /// Writes bytes and the headers of the pages that they cross; `total` is what the record has in all.
    fn write(&mut self, bytes: &[u8], total: usize) {
        let mut written = 0;
        while written < bytes.len() {
            if self.at.is_multiple_of(PAGE) {
                self.page_header(0x1, (total - written) as u32);
            }
            let room = (PAGE - self.at % PAGE) as usize;
            let part = room.min(bytes.len() - written);
            self.put(&bytes[written..written + part]);
            written += part;
        }
    }

    fn page_header(&mut self, flags: u16, remaining: u32) {
        let is_first = self.at.is_multiple_of(u64::from(SEGMENT));
        let mut header = Vec::new();
        header.extend(0xD110_u16.to_le_bytes());
        header.extend((flags | if is_first { 0x2 } else { 0 }).to_le_bytes());
        header.extend(self.timeline.0.to_le_bytes());
        header.extend(self.at.to_le_bytes());
        header.extend(remaining.to_le_bytes());
        header.extend([0; 4]);
        if is_first {
            header.extend(SYSTEM.to_le_bytes());
            header.extend(SEGMENT.to_le_bytes());
            header.extend((PAGE as u32).to_le_bytes());
        }
        self.put(&header);
    }

    fn put(&mut self, bytes: &[u8]) {
        let segment = Segment::at(self.timeline, Lsn(self.at), SEGMENT);
        let file = self.files.entry(segment).or_insert_with(|| vec![0; SEGMENT as usize]);
        let at = (self.at % u64::from(SEGMENT)) as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len() as u64;
    }
}

fn record(data: &[u8], manager: u8, info: u8, previous: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((24 + data.len() as u32).to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
    bytes.extend(previous.to_le_bytes());
    bytes.extend([info, manager, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(data), &bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(data);
    bytes
}
