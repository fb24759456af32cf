//! Streams the pages of `pg_wal` along one timeline's history, and refuses every page that is not what it must be.
//!
//! Rule: recycled segments hold old pages, so a page counts only if its header names its own address. Memory is
//! bounded by one chunk, however long the log is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proto::{Lsn, SystemIdentifier, Timeline, TimelineHistory};

use super::wal_files::Segment;

/// The only WAL page size that distributions build.
pub const PAGE: u64 = 8192;

/// How much is read at once: large enough that system calls cost nothing, and a part of every segment size.
const CHUNK: u64 = 256 * 1024;

const FIRST_IS_CONTRECORD: u16 = 0x1;
const LONG_HEADER: u16 = 0x2;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x8;
const ALL_FLAGS: u16 = 0xF;

const SHORT_HEADER_BYTES: usize = 24;
const LONG_HEADER_BYTES: usize = 40;

/// A directory of WAL, and what its pages must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalDir {
    pub pg_wal: PathBuf,
    pub segment_size: u32,
    pub system_identifier: SystemIdentifier,
    /// PostgreSQL's major version, 15 to 18.
    pub major: u32,
}

/// A page that was found to be what it must be. Its bytes stay with the reader until the next page is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub address: u64,
    pub header_bytes: usize,
    /// What is left at its begin of a record from the page before.
    pub remaining_bytes: u32,
    /// The timeline in the name of the file that holds it.
    pub file_timeline: Timeline,
    flags: u16,
    at: usize,
}

impl Page {
    pub fn first_is_contrecord(&self) -> bool {
        self.flags & FIRST_IS_CONTRECORD != 0
    }

    /// The record that the page before began was never finished and is void.
    pub fn overwrites_contrecord(&self) -> bool {
        self.flags & FIRST_IS_OVERWRITE_CONTRECORD != 0
    }
}

/// Reads pages in rising order.
pub struct PageReader<'a> {
    wal: &'a WalDir,
    history: &'a TimelineHistory,
    magic: u16,
    segment: Option<(Segment, File)>,
    chunk: Vec<u8>,
    chunk_start: u64,
    chunk_bytes: usize,
    page: Option<Page>,
    last_timeline: u32,
}

/// Why there is no page: the reason for the end of the log, in words for people.
pub type Absent = &'static str;

impl<'a> PageReader<'a> {
    /// Returns a reader along `history`. Fails for a major version whose pages it does not know.
    pub fn new(wal: &'a WalDir, history: &'a TimelineHistory) -> io::Result<Self> {
        let magic = match wal.major {
            15 => 0xD110,
            16 => 0xD113,
            17 => 0xD116,
            18 => 0xD118,
            other => {
                let text = format!("WAL of PostgreSQL {other} is not known, only of 15 to 18");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        };
        Ok(Self {
            wal,
            history,
            magic,
            segment: None,
            chunk: vec![0; CHUNK as usize],
            chunk_start: 0,
            chunk_bytes: 0,
            page: None,
            last_timeline: 0,
        })
    }

    /// Returns the page at `address`. A file that cannot be read is an error and never the end of the log.
    pub fn page(&mut self, address: u64) -> io::Result<Result<Page, Absent>> {
        if let Some(page) = self.page.filter(|page| page.address == address) {
            return Ok(Ok(page));
        }
        let file_timeline = match self.load(address)? {
            Ok(file_timeline) => file_timeline,
            Err(absent) => return Ok(Err(absent)),
        };
        let at = (address - self.chunk_start) as usize;
        let header = Header::of(&self.chunk[at..at + PAGE as usize]);
        if let Err(absent) = self.check(&header, address, file_timeline) {
            return Ok(Err(absent));
        }
        self.last_timeline = header.timeline;
        let page = Page {
            address,
            header_bytes: header.bytes(),
            remaining_bytes: header.remaining_bytes,
            file_timeline,
            flags: header.flags,
            at,
        };
        self.page = Some(page);
        Ok(Ok(page))
    }

    pub fn segment_size(&self) -> u64 {
        u64::from(self.wal.segment_size)
    }

    /// Returns the bytes of the page that was returned last.
    pub fn bytes(&self, page: &Page) -> &[u8] {
        &self.chunk[page.at..page.at + PAGE as usize]
    }

    /// Brings the chunk with `address` into memory. Returns the timeline of the file it came from.
    fn load(&mut self, address: u64) -> io::Result<Result<Timeline, Absent>> {
        let size = u64::from(self.wal.segment_size);
        let number = address / size;
        let open_is_other = self.segment.as_ref().is_none_or(|(s, _)| s.number != number);
        if open_is_other {
            self.page = None;
            self.chunk_bytes = 0;
            match self.open(number)? {
                Ok(segment) => self.segment = Some(segment),
                Err(absent) => return Ok(Err(absent)),
            }
        }
        let (segment, file) = self.segment.as_ref().expect("opened above");
        let held = self.chunk_start..self.chunk_start + self.chunk_bytes as u64;
        if !(held.contains(&address) && address + PAGE <= held.end) {
            self.page = None;
            self.chunk_start = address - address % CHUNK;
            self.chunk_bytes = read_up_to(file, &mut self.chunk, self.chunk_start % size)?;
        }
        if address + PAGE > self.chunk_start + self.chunk_bytes as u64 {
            return Ok(Err("the segment file is too short"));
        }
        Ok(Ok(segment.timeline))
    }

    /// Opens the segment's file of the newest timeline that has one, as PostgreSQL does, but never goes back to an
    /// older timeline than that of the file before.
    fn open(&self, number: u64) -> io::Result<Result<(Segment, File), Absent>> {
        let size = u64::from(self.wal.segment_size);
        let oldest = self.segment.as_ref().map_or(Timeline(0), |(s, _)| s.timeline);
        let ancestors = self.history.ancestors.iter().rev();
        let begins = ancestors.clone().map(|a| a.until.0).chain([0]);
        let timelines = [self.history.timeline].into_iter().chain(ancestors.map(|a| a.timeline));
        for (timeline, begin) in timelines.zip(begins) {
            if timeline < oldest {
                break;
            }
            if number < begin / size {
                continue;
            }
            let segment = Segment { timeline, number };
            let path = self.wal.pg_wal.join(segment.file_name(self.wal.segment_size));
            match File::open(path) {
                Ok(file) => return self.check_first_page(segment, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Err("the next segment is not there"))
    }

    /// The first page of each file says to which cluster it belongs; later pages do not.
    fn check_first_page(
        &self,
        segment: Segment,
        file: File,
    ) -> io::Result<Result<(Segment, File), Absent>> {
        let mut start = [0; LONG_HEADER_BYTES];
        if read_up_to(&file, &mut start, 0)? < LONG_HEADER_BYTES {
            return Ok(Err("the segment file is too short"));
        }
        let header = Header::of(&start);
        let address = segment.number * u64::from(self.wal.segment_size);
        if header.magic != self.magic || header.flags & LONG_HEADER == 0 {
            return Ok(Err("the segment has no long page header of this version"));
        }
        if header.address != address {
            return Ok(Err("the segment holds pages of another address"));
        }
        Ok(self.check_long(&header).map(|()| (segment, file)))
    }

    fn check(&self, header: &Header, address: u64, file: Timeline) -> Result<(), Absent> {
        if header.magic != self.magic {
            return Err("the page has another magic number");
        }
        if header.flags & !ALL_FLAGS != 0 {
            return Err("the page has unknown flags");
        }
        if header.flags & LONG_HEADER != 0 {
            self.check_long(header)?;
        } else if address.is_multiple_of(u64::from(self.wal.segment_size)) {
            return Err("the first page of the segment has no long header");
        }
        if header.address != address {
            return Err("the page is of another address");
        }
        if header.timeline < self.last_timeline || header.timeline > file.0 {
            return Err("the page's timeline does not fit its place");
        }
        let timeline = Timeline(header.timeline);
        let known = timeline == self.history.timeline || self.history.left_at(timeline).is_some();
        if !known {
            return Err("the page is of a timeline that is not in the history");
        }
        Ok(())
    }

    fn check_long(&self, header: &Header) -> Result<(), Absent> {
        if header.system_identifier != self.wal.system_identifier.0 {
            return Err("the segment is of another cluster");
        }
        if header.segment_size != self.wal.segment_size || u64::from(header.page_bytes) != PAGE {
            return Err("the segment has other sizes");
        }
        Ok(())
    }
}

/// A page header; the last three fields only mean something in a long one.
struct Header {
    magic: u16,
    flags: u16,
    timeline: u32,
    address: u64,
    remaining_bytes: u32,
    system_identifier: u64,
    segment_size: u32,
    page_bytes: u32,
}

impl Header {
    /// Reads a header from at least `LONG_HEADER_BYTES` bytes.
    fn of(bytes: &[u8]) -> Self {
        let u16_at = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            magic: u16_at(0),
            flags: u16_at(2),
            timeline: u32_at(bytes, 4),
            address: u64_at(bytes, 8),
            remaining_bytes: u32_at(bytes, 16),
            system_identifier: u64_at(bytes, 24),
            segment_size: u32_at(bytes, 32),
            page_bytes: u32_at(bytes, 36),
        }
    }

    fn bytes(&self) -> usize {
        if self.flags & LONG_HEADER != 0 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }
}

/// Returns the little-endian number at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Returns the little-endian number at `at`.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Fills `buffer` from `offset` on as far as the file goes. Returns how many bytes it has.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Returns the page that holds `lsn`, and the place in it.
pub fn split(lsn: Lsn) -> (u64, usize) {
    (lsn.0 - lsn.0 % PAGE, (lsn.0 % PAGE) as usize)
}
