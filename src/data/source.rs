//! What records are read from: a file, compressed or not, or a text in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::files::require_content;
use crate::{Error, Result};

const BUFFER: usize = 1 << 16;
/// As many bytes as tell what a file is.
const HEAD: usize = 64;
const BOM: &[u8] = "\u{feff}".as_bytes();
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The ends of names of compressed files.
const COMPRESSED: [&str; 3] = ["gz", "zst", "zstd"];

/// Where records are read from, which can be done several times.
pub(super) struct Source<'a> {
    /// What errors call it.
    pub(super) path: &'a Path,
    content: Content<'a>,
}

enum Content<'a> {
    File,
    Text(&'a str),
    /// Of a pipe, which can be read only once.
    Bytes(Vec<u8>),
}

impl<'a> Source<'a> {
    /// A file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub(super) fn file(path: &'a Path) -> Result<Self> {
        let metadata = path.metadata().map_err(Error::io(path))?;
        let content = match metadata.is_file() {
            true => Content::File,
            false => Content::Bytes(std::fs::read(path).map_err(Error::io(path))?),
        };
        Ok(Self { path, content })
    }

    /// A text that is called `path`.
    pub(super) fn text(text: &'a str, path: &'a Path) -> Self {
        let content = Content::Text(text);
        Self { path, content }
    }

    /// Its text from the beginning, decompressed, without a byte order mark. What it begins with tells whether it is
    /// compressed.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, and [`Error::Format`] if it only stands for another file.
    pub(super) fn open(&self) -> Result<Box<dyn BufRead + '_>> {
        let raw: Box<dyn Read + '_> = match &self.content {
            Content::File => Box::new(File::open(self.path).map_err(Error::io(self.path))?),
            Content::Text(text) => Box::new(text.as_bytes()),
            Content::Bytes(bytes) => Box::new(&bytes[..]),
        };
        let (head, raw) = split_head(raw).map_err(Error::io(self.path))?;
        require_content(&head, self.path)?;
        let (is_gzip, is_zstd) = (head.starts_with(&GZIP), head.starts_with(&ZSTD));
        let raw = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(raw));
        let text: Box<dyn Read + '_> = match (is_gzip, is_zstd) {
            (true, _) => Box::new(MultiGzDecoder::new(raw)),
            (_, true) => Box::new(Frames::new(raw)),
            _ => Box::new(raw),
        };
        let (head, rest) = split_head(text).map_err(Error::io(self.path))?;
        let text = head.strip_prefix(BOM).unwrap_or(&head).to_vec();
        let text = Cursor::new(text).chain(rest);
        Ok(Box::new(BufReader::with_capacity(BUFFER, text)))
    }

    /// The error for a file without records.
    pub(super) fn empty(&self) -> Error {
        let message = "the data set is empty; it must hold at least one record";
        Error::format(self.path, message)
    }

    /// The error for what cannot be read of it.
    pub(super) fn io(&self, error: io::Error) -> Error {
        Error::io(self.path)(error)
    }
}

/// The path without the end that says how the file is compressed.
pub(super) fn without_compression(path: &Path) -> &Path {
    let end = path.extension().unwrap_or_default().to_ascii_lowercase();
    match path.file_stem() {
        Some(stem) if COMPRESSED.iter().any(|known| end == *known) => Path::new(stem),
        _ => path,
    }
}

/// What the frames of a zstd file hold, one after the other.
struct Frames<R> {
    file: R,
    decoder: FrameDecoder,
}

impl<R: BufRead> Frames<R> {
    fn new(file: R) -> Self {
        let decoder = FrameDecoder::new();
        Self { file, decoder }
    }

    /// Begins the next frame that holds something, if there is one.
    fn next(&mut self) -> io::Result<bool> {
        use FrameDecoderError::ReadFrameHeaderError as Header;
        while !self.file.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.file) {
                Ok(()) => return Ok(true),
                Err(Header(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let mut skipped = (&mut self.file).take(u64::from(length));
                    io::copy(&mut skipped, &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            while !self.decoder.is_finished() && self.decoder.can_collect() < buffer.len() {
                let some = BlockDecodingStrategy::UptoBytes(buffer.len());
                let decoded = self.decoder.decode_blocks(&mut self.file, some);
                decoded.map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || !self.next()? {
                return Ok(count);
            }
        }
    }
}

/// The first bytes, and what follows them.
fn split_head<R: Read>(mut reader: R) -> io::Result<(Vec<u8>, R)> {
    let mut head = Vec::with_capacity(HEAD);
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head, reader))
}
