package index

// walk is view for what looks at much of the file. Those pages are let go of after,
// for they would count as this process's memory as long as it runs: the page cache
// has them, and gives them back to the next reader.
func (ix *Index) walk(fn func(*tx) error) error {
	return ix.view(func(tx *tx) error {
		err := fn(tx)
		letGo(tx)
		return err
	})
}

// letGoAfter is how many entries chunksOf reads before it lets go of their pages.
const letGoAfter = 1000

// LetGo does what walk does at its end. It is for who reads much in small pieces.
func (ix *Index) LetGo() error { return ix.walk(func(*tx) error { return nil }) }
