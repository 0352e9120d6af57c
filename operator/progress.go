package operator

// Progress is how far something has come that takes long. It is an event of those
// requests that move images.
type Progress struct {
	// Unit says what is counted, in the plural: "images", "blobs".
	Unit string `json:"unit"`
	// Done of Total are done, for better or worse. Total may grow.
	Done  int `json:"done"`
	Total int `json:"total"`
	// Bytes of TotalBytes have come, as far as is known by now: TotalBytes grows as
	// more is found out, and is zero where nothing is known.
	Bytes      int64 `json:"bytes"`
	TotalBytes int64 `json:"totalBytes"`
	// Current is what is being worked on, in a steady order.
	Current []Transfer `json:"current,omitempty"`
	// Waiting says what is waited for, in a sentence; empty where nothing is.
	Waiting string `json:"waiting,omitempty"`
}

// Transfer is one thing on its way.
type Transfer struct {
	// Name tells it from the others: a reference, a file.
	Name string `json:"name"`
	// Bytes and TotalBytes are as those of Progress.
	Bytes      int64 `json:"bytes"`
	TotalBytes int64 `json:"totalBytes"`
}
