package wire

// Begin is for a stream without the lines of the authentication.
func (f *Frames) Begin() { f.begun = true }

// Unread is how many bytes of a message nobody has read.
func (f *Frames) Unread() int { return len(f.message) }
