//! Reading of bytes none of which is believed before it is checked.

/// Bytes that are read from the first on, and where the next one is. No more is ever read, or said to be there, than
/// there is.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes have been read.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        match self.bytes[self.at..].get(..len) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => Err(format!(
                "{len} bytes should stand at byte {}, but the file has {}; was the download or copy cut short?",
                self.at,
                self.bytes.len()
            )),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many things follow, of at least `min_bytes` each.
    pub(crate) fn count(&mut self, things: &str, min_bytes: usize) -> Result<usize, String> {
        let start = self.at;
        let count = self.u64()?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!(
                "{count} {things} are announced at byte {start}, but the {} bytes that follow have room for {most} at \
                 most; was the download or copy cut short?",
                self.remaining()
            )),
        }
    }

    /// The bytes of a text.
    pub(crate) fn text_bytes(&mut self) -> Result<&'a [u8], String> {
        let len = self.count("bytes of a text", 1)?;
        self.take(len)
    }

    /// A name.
    pub(crate) fn name(&mut self) -> Result<&'a str, String> {
        let start = self.at;
        let bytes = self.text_bytes()?;
        std::str::from_utf8(bytes).map_err(|_| format!("the name at byte {start} is not UTF-8"))
    }
}
