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
	return best
}

// didYouMean gives the end of a sentence that suggests a word, or lists all.
func didYouMean(got string, words []string) string {
	if s := suggest(got, words); s != "" {
		return "did you mean " + s + "?"
	}
	return "allowed here: " + strings.Join(words, ", ")
}

// distance is Levenshtein's: how many characters must be inserted, dropped or
// changed to make b of a. What it compares is as short as a key.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
