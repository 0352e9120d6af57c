package index

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func at(seconds int64) time.Time { return time.Unix(seconds, 0) }

func record(what string, seconds int64) Tag {
	return Tag{Digest: digest.FromString(what), Checked: at(seconds)}
}

// see has the tag latest stand for something, and tells what it moved from.
func see(t *testing.T, ix *Index, how Seen, rec Tag) (from digest.Digest) {
	t.Helper()
	err := ix.Put(Change{Upstream: "docker.io", Repository: "library/nginx", Tag: "latest", Record: rec, How: how, Moved: func(d digest.Digest) { from = d }})
	if err != nil {
		t.Fatal(err)
	}
	return from
}

func wantHistory(t *testing.T, ix *Index, want ...Observation) {
	t.Helper()
	got := ix.History("docker.io", "library/nginx", "latest")
	same := len(got) == len(want)
	for i := 0; same && i < len(got); i++ {
		g, w := got[i], want[i]
		same = g.Digest == w.Digest && g.How == w.How && g.First.Equal(w.First) && g.Last.Equal(w.Last)
	}
	if !same {
		t.Errorf("history\n got %+v\nwant %+v", got, want)
	}
}

// count gives the number of observations that is written, and that there are.
func count(t *testing.T, ix *Index) (written, there int) {
	t.Helper()
	err := ix.view(func(tx *tx) error {
		n := readObservationCount(tx)
		written, there = n.standing+n.ended, tx.Bucket(ledgerBucket).KeyN()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return written, there
}

func TestLedgerGrowsWithMovesAndNotWithChecks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	wantHistory(t, ix)
	if from := see(t, ix, SeenGet, record("a", 100)); from != "" {
		t.Errorf("a new tag has moved from %s", from)
	}
	for i := range int64(50) {
		ix.Touch("docker.io", "library/nginx", "latest", record("a", 101+i))
	}
	see(t, ix, SeenGet, record("a", 160))
	ix.Touch("docker.io", "library/nginx", "latest", record("a", 170))
	wantHistory(t, ix, Observation{digest.FromString("a"), at(100), at(170), SeenGet})
	// A confirmation that is not written yet counts.
	if from := see(t, ix, SeenRevalidation, record("b", 200)); from != digest.FromString("a") {
		t.Errorf("moved from %q, want a", from)
	}
	if from := see(t, ix, SeenRevalidation, record("a", 300)); from != digest.FromString("b") {
		t.Errorf("moved from %q, want b", from)
	}
	want := []Observation{
		{digest.FromString("a"), at(100), at(170), SeenGet},
		{digest.FromString("b"), at(200), at(200), SeenRevalidation},
		{digest.FromString("a"), at(300), at(300), SeenRevalidation},
	}
	wantHistory(t, ix, want...)
	closed(t, ix)
	ix = opened(t, path)
	defer closed(t, ix)
	wantHistory(t, ix, want...)
	if written, there := count(t, ix); written != 3 || there != 3 {
		t.Errorf("%d observations are counted, and %d there; want 3", written, there)
	}
}

func TestLedgerKnowsOfAbsenceAndOfWhatIsForgotten(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	absent := func(seconds int64) {
		t.Helper()
		if err := ix.ObserveAbsent("docker.io", "library/nginx", "latest", at(seconds)); err != nil {
			t.Fatal(err)
		}
	}
	drop := func() {
		t.Helper()
		if _, err := ix.DropTags("docker.io", "library/nginx", []string{"latest"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	absent(50) // of what strangers make up nothing is noted
	wantHistory(t, ix)
	see(t, ix, SeenHead, record("a", 100))
	ix.Touch("docker.io", "library/nginx", "latest", record("a", 120))
	absent(150)
	drop()
	absent(160)
	a := Observation{digest.FromString("a"), at(100), at(120), SeenHead}
	gone := Observation{"", at(150), at(150), SeenRevalidation}
	wantHistory(t, ix, a, gone)
	if from := see(t, ix, SeenGet, record("a", 170)); from != "" {
		t.Errorf("a tag that is back as it was has moved from %s", from)
	}
	drop() // by hand: the upstream has said nothing
	again := Observation{digest.FromString("a"), at(170), at(170), SeenGet}
	wantHistory(t, ix, a, gone, again)
	see(t, ix, SeenGet, record("a", 200))
	again.Last = at(200)
	wantHistory(t, ix, a, gone, again)
	absent(210)
	drop()
	if from := see(t, ix, SeenGet, record("b", 220)); from != digest.FromString("a") {
		t.Errorf("a tag that was deleted and pushed anew has moved from %q, want a", from)
	}
}

func TestLedgerBeginsWithTheRecordsThatWereThereBefore(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	old := record("a", 100)
	if err := ix.put(tagsBucket, join("docker.io", "library/nginx", "latest"), old); err != nil {
		t.Fatal(err)
	}
	wantHistory(t, ix, Observation{old.Digest, at(100), at(100), ""})
	if from := see(t, ix, SeenRevalidation, record("b", 200)); from != old.Digest {
		t.Errorf("moved from %q, want a", from)
	}
	wantHistory(t, ix, Observation{old.Digest, at(100), at(100), ""}, Observation{digest.FromString("b"), at(200), at(200), SeenRevalidation})
}

func TestLedgerStaysInOrderWhenTheClockIsSetBack(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	see(t, ix, SeenGet, record("a", 500))
	see(t, ix, SeenRevalidation, record("b", 100))
	list := ix.History("docker.io", "library/nginx", "latest")
	if len(list) != 2 || list[1].Digest != digest.FromString("b") || !list[1].First.After(list[0].First) {
		t.Errorf("history %+v", list)
	}
}

func TestLedgerIsBoundedForATagAndForAll(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	const moves = maxOfTag + 20
	err := ix.update(func(tx *tx) error {
		for i := range int64(moves) {
			c := Change{Upstream: "docker.io", Repository: "library/nginx", Tag: "latest", Record: record(fmt.Sprint(i), 100+i)}
			if err := ix.putTag(tx, join(c.Upstream, c.Repository, c.Tag), c, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list := ix.History("docker.io", "library/nginx", "latest")
	if len(list) != maxOfTag || list[0].Digest != digest.FromString("20") || list[maxOfTag-1].Digest != digest.FromString(fmt.Sprint(moves-1)) {
		t.Fatalf("%d observations, the first %+v, the last %+v", len(list), list[0], list[len(list)-1])
	}
	if err := ix.PutTag("docker.io", "library/steady", "1", record("steady", 1)); err != nil {
		t.Fatal(err)
	}
	const most = 100
	var ended, standing int
	ix.Trimmed(func(e, s int) { ended, standing = ended+e, standing+s })
	if err := ix.trim(most, most); err != nil {
		t.Fatal(err)
	}
	// One of nginx and one of steady hold.
	if written, there := count(t, ix); written != most/100*trimmedTo+2 || there != written {
		t.Errorf("%d observations are counted, and %d there; want %d", written, there, most/100*trimmedTo+2)
	}
	if want := maxOfTag - 1 - most/100*trimmedTo; ended != want || standing != 0 {
		t.Errorf("%d that had ended and %d that held were dropped; want %d and none", ended, standing, want)
	}
	// What ended first went, and not what still holds.
	list = ix.History("docker.io", "library/nginx", "latest")
	if last := list[len(list)-1]; last.Digest != digest.FromString(fmt.Sprint(moves-1)) {
		t.Errorf("the last is %+v", last)
	}
	err = ix.view(func(tx *tx) error {
		if key, _ := lastOf(tx.Bucket(ledgerBucket).Cursor(), join("docker.io", "library/steady", "1")); key == nil {
			t.Error("what a tag still stands for has been trimmed")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := ix.trim(10, 1); err != nil {
		t.Fatal(err)
	}
	if list := ix.History("docker.io", "library/steady", "1"); len(list) != 1 {
		t.Errorf("the record tells as much: %+v", list)
	}
}

func TestHistoriesOfAllTags(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	want := map[string][]digest.Digest{}
	for i, name := range []string{"app", "app2", "a/b", "z"} {
		for _, tag := range []string{"1", "10", "1.0"} {
			for n := range i + 1 {
				what := fmt.Sprint(name, tag, n)
				if err := ix.PutTag("docker.io", name, tag, record(what, int64(100+n))); err != nil {
					t.Fatal(err)
				}
				want[name+":"+tag] = append(want[name+":"+tag], digest.FromString(what))
			}
		}
	}
	got := map[string][]digest.Digest{}
	err := ix.Histories("", "", func(upstream, repo, tag string, list []Observation) bool {
		for _, o := range list {
			got[repo+":"+tag] = append(got[repo+":"+tag], o.Digest)
		}
		return upstream == "docker.io"
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %v\nwant %v", err, got, want)
	}
	var tags []string
	if err := ix.Histories("docker.io", "app", func(_, repo, tag string, _ []Observation) bool {
		tags = append(tags, repo+":"+tag)
		return true
	}); err != nil || !reflect.DeepEqual(tags, []string{"app:1", "app:1.0", "app:10"}) {
		t.Errorf("of one repository: %v, %v", tags, err)
	}
	n := 0
	if err := ix.Histories("", "", func(string, string, string, []Observation) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("%d told, %v; want 3", n, err)
	}
}

func TestLedgerIsRestoredFromTheBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	see(t, ix, SeenGet, record("a", 100))
	see(t, ix, SeenRevalidation, record("b", 200))
	closed(t, ix)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ix = opened(t, path)
	defer closed(t, ix)
	// It is asked for before the backup is read, and has not moved.
	see(t, ix, SeenGet, record("b", 300))
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	wantHistory(t, ix, Observation{digest.FromString("a"), at(100), at(100), SeenGet}, Observation{digest.FromString("b"), at(200), at(300), SeenRevalidation})
	if written, there := count(t, ix); written != 3 || there != 3 {
		t.Errorf("%d observations are counted, and %d there; want 3", written, there)
	}
}

// TestTagsThatOnlyStandCostNoHistory has many tags that were only looked at, and one that has
// moved before them: its history stays, however many they are.
func TestTagsThatOnlyStandCostNoHistory(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	for i, of := range []string{"a", "b", "c"} {
		see(t, ix, SeenRevalidation, record(of, int64(100+100*i)))
	}
	const crawled = 200_100
	for i := 0; i < crawled; i += 5000 {
		var changes []Change
		for k := i; k < min(crawled, i+5000); k++ {
			changes = append(changes, Change{Upstream: "docker.io", Repository: "library/crawled", Tag: fmt.Sprint(k), Record: record(fmt.Sprint(k), 1000+int64(k)), How: SeenHead})
		}
		if err := ix.Put(changes...); err != nil {
			t.Fatal(err)
		}
	}
	ix.Trimmed(func(ended, standing int) { t.Errorf("%d and %d were dropped", ended, standing) })
	if err := ix.trim(maxEnded, maxStanding); err != nil {
		t.Fatal(err)
	}
	if list := ix.History("docker.io", "library/nginx", "latest"); len(list) != 3 || list[0].Digest != digest.FromString("a") {
		t.Errorf("history %+v", list)
	}
	// Above the bound for those that hold, the newest of tags that never moved go.
	dropped := 0
	ix.Trimmed(func(ended, standing int) {
		dropped += standing
		if ended != 0 {
			t.Errorf("%d that had ended were dropped", ended)
		}
	})
	if err := ix.trim(maxEnded, 200_000); err != nil {
		t.Fatal(err)
	}
	if want := crawled + 1 - 180_000; dropped != want {
		t.Errorf("%d were dropped, want %d", dropped, want)
	}
	if list := ix.History("docker.io", "library/nginx", "latest"); len(list) != 3 {
		t.Errorf("history %+v", list)
	}
	for tag, first := range map[string]int64{"0": 1000, fmt.Sprint(crawled - 1): 1000 + crawled - 1} {
		if list := ix.History("docker.io", "library/crawled", tag); len(list) != 1 || !list[0].First.Equal(at(first)) {
			t.Errorf("tag %s: %+v", tag, list)
		}
	}
	if written, there := count(t, ix); written != there {
		t.Errorf("%d observations are counted, and %d there", written, there)
	}
}
