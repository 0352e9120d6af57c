package configs

import "strings"

// suggest gives the word of words that was most likely meant by got, or "".
func suggest(got string, words []string) string {
	best, bestDistance := "", max(1, len(got)/3)+1
	for _, w := range words {
		if d := distance(strings.ToLower(got), strings.ToLower(w)); d < bestDistance {
			best, bestDistance = w, d
		}
	}
	if best != "" {
		return best
	}
	// A word in full for a short one, or the reverse: directory, mem.
	for _, w := range words {
		if min(len(got), len(w)) >= 3 && (strings.HasPrefix(got, w) || strings.HasPrefix(w, got)) {
			return w
		}
	}
	return ""
}

// didYouMean gives the end of a sentence that suggests a word, or lists all.
func didYouMean(got string, words []string) string {
	if s := suggest(got, words); s != "" {
		return "did you mean " + s + "?"
	}
	return "allowed here: " + strings.Join(words, ", ")
}

// distance is how many characters must be inserted, dropped, changed or swapped
// with their neighbour to make b of a.
func distance(a, b string) int {
	// rows[i][j] is the distance of the first i characters of a and j of b. A
	// key is short; what a file has in its place may not be.
	if len(a) > 100 {
		return len(a)
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := range len(a) {
		for j := range len(b) {
			change := rows[i][j]
			if a[i] != b[j] {
				change++
			}
			d := min(change, rows[i][j+1]+1, rows[i+1][j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, rows[i-1][j-1]+1)
			}
			rows[i+1][j+1] = d
		}
	}
	return rows[len(a)][len(b)]
}
