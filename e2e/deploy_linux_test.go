package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const (
	deployDir = "../configs/deploy"
	// deployVariable names the program that was built as the Dockerfile says. It is set where
	// the test runs again, in namespaces of its own.
	deployVariable = "ENTREPOT_TEST_DEPLOY"
)

// TestReadyFilesAreStartedAsTheyAre starts what the Compose file, the Kubernetes manifest and
// the systemd unit say: the program of the Dockerfile's build in a root file system with
// nothing else, read-only, as the user, with the arguments, the environment and the volumes of
// the file, in network and mount namespaces of its own, where the files' ports are free. There
// it also runs the commands of README.md and docs/getting-started.md.
func TestReadyFilesAreStartedAsTheyAre(t *testing.T) {
	binary := os.Getenv(deployVariable)
	if binary == "" {
		runInNamespaces(t)
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	bringLoopbackUp(t)
	t.Run("compose", func(t *testing.T) { testComposeFile(t, binary) })
	t.Run("kubernetes", func(t *testing.T) { testKubernetesManifest(t, binary) })
	t.Run("systemd", func(t *testing.T) { testSystemdUnit(t, binary) })
	t.Run("readme", func(t *testing.T) { testReadme(t, binary) })
}

// runInNamespaces builds the program and runs this test again.
func runInNamespaces(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		cannot(t, "other users and namespaces need root")
	}
	try := exec.Command("/bin/true")
	try.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if err := try.Run(); err != nil {
		cannot(t, "namespaces cannot be made here: "+err.Error())
	}
	binary := filepath.Join(t.TempDir(), "entrepot")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=auto", "-trimpath", "-ldflags=-s -w", "-o", binary, "../cmd/proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), deployVariable+"="+binary)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in namespaces: %v\n%s", err, out)
	}
	t.Logf("in namespaces:\n%s", out)
}

// bringLoopbackUp starts the only interface of a network namespace.
func bringLoopbackUp(t *testing.T) {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("bring up lo: %v", err)
	}
}

// dockerImage is what the Dockerfile says of the image's container.
type dockerImage struct {
	entrypoint, command, health []string
	uid, gid                    uint32
	volume                      string
}

func readDockerfile(t *testing.T) (i dockerImage) {
	t.Helper()
	b, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	list := func(text string) (l []string) {
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("Dockerfile: %s: %v", text, err)
		}
		return l
	}
	_, final, ok := strings.Cut(string(b), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the Dockerfile has no last stage from scratch")
	}
	for line := range strings.Lines(final) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "ENTRYPOINT":
			i.entrypoint = list(rest)
		case "CMD":
			i.command = list(rest)
		case "HEALTHCHECK":
			_, rest, _ = strings.Cut(rest, " CMD ")
			i.health = list(rest)
		case "VOLUME":
			i.volume = rest
		case "USER":
			if _, err := fmt.Sscanf(rest, "%d:%d", &i.uid, &i.gid); err != nil {
				t.Fatalf("Dockerfile: USER %s: %v", rest, err)
			}
		}
	}
	if i.entrypoint == nil || i.command == nil || i.health == nil || i.volume == "" || i.uid == 0 {
		t.Fatalf("the Dockerfile has no entry point, command, health check, volume or user: %+v", i)
	}
	return i
}

// container is a root file system in which programs run as a container's do.
type container struct {
	root     string
	env      []string
	uid, gid uint32
}

// newContainer makes a root file system that has the program at path, and the directories of
// volumes, by where they are mounted. It is read-only, but for volumes.
func newContainer(t *testing.T, binary, path string, volumes map[string]string) *container {
	t.Helper()
	root := t.TempDir()
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	do("mount", unix.Mount(root, root, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	program, err := os.ReadFile(binary)
	do("read the program", err)
	do("mkdir", os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
	do("write the program", os.WriteFile(filepath.Join(root, path), program, 0o755))
	do("mkdir", os.Mkdir(filepath.Join(root, "proc"), 0o555))
	for at := range volumes {
		do("mkdir", os.MkdirAll(filepath.Join(root, at), 0o755))
	}
	do("remount", unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""))
	do("mount proc", unix.Mount("/proc", filepath.Join(root, "proc"), "", unix.MS_BIND|unix.MS_REC, ""))
	for at, dir := range volumes {
		do("mount a volume", unix.Mount(dir, filepath.Join(root, at), "", unix.MS_BIND, ""))
	}
	return &container{root: root}
}

// command returns a command that runs in the container.
func (c *container) command(args ...string) *exec.Cmd {
	return &exec.Cmd{Path: args[0], Args: args, Env: c.env, Dir: "/", SysProcAttr: &syscall.SysProcAttr{
		Chroot: c.root, Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid}, Pdeathsig: syscall.SIGKILL,
	}}
}

// exec runs a command in the container, which must succeed, and returns what it prints.
func (c *container) exec(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.command(args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// service is the running main process of a container.
type service struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan error
	mu    sync.Mutex
	log   bytes.Buffer
}

func (s *service) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func (s *service) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// start starts the container's main process. It ends with the test at the latest.
func (c *container) start(t *testing.T, args ...string) *service {
	t.Helper()
	s := &service{t: t, cmd: c.command(args...), ended: make(chan error, 1)}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	go func() { s.ended <- s.cmd.Wait() }() // ends with the process
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	return s
}

// until waits until cond is true, and fails if the process ends before.
func (s *service) until(what string, cond func() bool) {
	s.t.Helper()
	proxy.Until(s.t, what, func() bool {
		select {
		case err := <-s.ended:
			s.t.Fatalf("the process ended before %s: %v\n%s", what, err, s)
		default:
		}
		return cond()
	})
}

// stop ends the process by SIGTERM. Everything that it wrote must be JSON.
func (s *service) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("after SIGTERM: %v\n%s", err, s)
		}
	case <-time.After(limit):
		s.t.Fatal("the process has not ended after SIGTERM")
	}
	for lines := bufio.NewScanner(strings.NewReader(s.String())); lines.Scan(); {
		if !json.Valid(lines.Bytes()) {
			s.t.Errorf("a line of the log is not JSON: %s", lines.Text())
		}
	}
}

// asks sends a request to a port by another address than 127.0.0.1, as from outside of a
// container, with a Host header if host is not empty.
func asks(t *testing.T, port, path, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.2:"+port+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func wantStatus200(t *testing.T, port, path, host string) string {
	t.Helper()
	status, body := asks(t, port, path, host)
	if status != http.StatusOK {
		t.Errorf("%s of port %s, asked as %q: %d %s", path, port, host, status, body)
	}
	return body
}

// deployFile returns the text of a ready file.
func deployFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(deployDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// owned makes a directory for a volume.
func owned(t *testing.T, uid, gid int, mode os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, uid, gid), os.Chmod(dir, mode)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// longerThan checks that a supervisor waits until the program has ended by itself.
func longerThan(t *testing.T, what string, is, want time.Duration) {
	t.Helper()
	if is <= want {
		t.Errorf("%s is %s, and must be longer than shutdown_timeout, %s", what, is, want)
	}
}

func testComposeFile(t *testing.T, binary string) {
	text, image := deployFile(t, "compose.yml"), readDockerfile(t)
	// What a service of the file may say: everything here is done below.
	var file struct {
		Services map[string]struct {
			Build           struct{ Context string }
			Image           string
			Ports           []string
			Environment     map[string]string
			Volumes         []string
			ReadOnly        bool     `yaml:"read_only"`
			CapDrop         []string `yaml:"cap_drop"`
			SecurityOpt     []string `yaml:"security_opt"`
			StopGracePeriod string   `yaml:"stop_grace_period"`
			Restart         string
			Ulimits         map[string]int
			Command         []string
		}
		Volumes map[string]any
	}
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	s := file.Services["entrepot"]
	if len(file.Services) != 1 || !s.ReadOnly || s.Build.Context != "../.." || len(s.Ports) == 0 || !slices.Equal(s.CapDrop, []string{"ALL"}) {
		t.Fatalf("the file is not what this test knows: %+v", file)
	}
	volumes := map[string]string{}
	for _, v := range s.Volumes {
		name, at, _ := strings.Cut(v, ":")
		if _, named := file.Volumes[name]; !named || at != image.volume {
			t.Fatalf("volume %s: want a named one, at the image's %s", v, image.volume)
		}
		volumes[at] = owned(t, int(image.uid), int(image.gid), 0o700) // as a new volume gets it from the image
	}
	c := newContainer(t, binary, image.entrypoint[0], volumes)
	c.uid, c.gid = image.uid, image.gid
	for name, value := range s.Environment {
		c.env = append(c.env, name+"="+value)
	}
	command := s.Command
	if command == nil {
		command = image.command
	}
	grace, err := time.ParseDuration(s.StopGracePeriod)
	if err != nil {
		t.Fatal(err)
	}
	longerThan(t, "stop_grace_period", grace, 30*time.Second)
	t.Run("runc", func(t *testing.T) { testInRunc(t, binary, image, c.env, command) })
	for range 2 { // the second time on the same volume
		p := c.start(t, slices.Concat(image.entrypoint, command)...)
		p.until("the container is healthy", func() bool { return c.command(image.health...).Run() == nil })
		for _, port := range s.Ports {
			inside := port[strings.LastIndex(port, ":")+1:]
			path := map[string]string{"5000": "/v2/", "5001": "/readyz"}[inside]
			if path == "" {
				t.Fatalf("port %s is published", port)
			}
			wantStatus200(t, inside, path, "")
			if inside == "5001" && !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("the admin listener is published to other machines: %s", port)
			}
		}
		found := 0
		for _, m := range regexp.MustCompile(`docker compose exec entrepot (/.*)`).FindAllStringSubmatch(text, -1) {
			found++
			c.exec(t, strings.Fields(m[1])...)
		}
		scraped := regexp.MustCompile(`http://(entrepot:5001)(/metrics)`).FindStringSubmatch(text)
		if found == 0 || scraped == nil {
			t.Fatal("the file does not say how to run commands and where Prometheus scrapes")
		}
		if body := wantStatus200(t, "5001", scraped[2], scraped[1]); !strings.Contains(body, "entrepot_cache_limit_bytes") {
			t.Errorf("metrics: %.200s", body)
		}
		p.stop()
	}
}

// testInRunc starts the image's program by an OCI runtime: a read-only root file system with
// nothing but the program, the image's user, no capabilities, and its own namespaces.
func testInRunc(t *testing.T, binary string, image dockerImage, environment []string, command []string) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is not installed")
	}
	bundle, volume := t.TempDir(), owned(t, int(image.uid), int(image.gid), 0o700)
	root := filepath.Join(bundle, "rootfs")
	program, err := os.ReadFile(binary)
	if err = errors.Join(err, os.MkdirAll(filepath.Join(root, image.volume), 0o755), os.WriteFile(filepath.Join(root, image.entrypoint[0]), program, 0o755)); err != nil {
		t.Fatal(err)
	}
	state, id := t.TempDir(), fmt.Sprintf("entrepot-test-%d", os.Getpid())
	do := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), runc, append([]string{"--root", state}, args...)...)
	}
	if out, err := do("spec", "--bundle", bundle).CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v\n%s", err, out)
	}
	configure := func(args []string) {
		t.Helper()
		path := filepath.Join(bundle, "config.json")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var config map[string]any
		if err := json.Unmarshal(b, &config); err != nil {
			t.Fatal(err)
		}
		config["process"] = map[string]any{"args": args, "env": environment, "cwd": "/", "noNewPrivileges": true, "user": map[string]any{"uid": image.uid, "gid": image.gid}}
		config["root"] = map[string]any{"path": "rootfs", "readonly": true}
		mounts, _ := config["mounts"].([]any)
		mounts = slices.DeleteFunc(mounts, func(m any) bool { return m.(map[string]any)["destination"] == image.volume })
		config["mounts"] = append(mounts, map[string]any{"destination": image.volume, "type": "bind", "source": volume, "options": []string{"rbind", "rw"}})
		if b, err = json.Marshal(config); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure([]string{image.entrypoint[0], "version"})
	if out, err := do("run", "--bundle", bundle, id+"-version").CombinedOutput(); err != nil {
		t.Skipf("containers cannot be started here: %v\n%s", err, out)
	}
	configure(slices.Concat(image.entrypoint, command))
	s := &service{t: t, cmd: do("run", "--bundle", bundle, id), ended: make(chan error, 1)}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.cmd.Wait() }() // ends with the container
	t.Cleanup(func() { _ = exec.Command(runc, "--root", state, "delete", "--force", id).Run() })
	s.until("the container is healthy", func() bool { return do(append([]string{"exec", id}, image.health...)...).Run() == nil })
	if out, err := do("exec", id, image.entrypoint[0], "ls").CombinedOutput(); err != nil {
		t.Errorf("ls: %v\n%s", err, out)
	}
	if out, err := do("kill", id, "TERM").CombinedOutput(); err != nil {
		t.Errorf("runc kill: %v\n%s", err, out)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("after SIGTERM: %v\n%s", err, s)
		}
	case <-time.After(limit):
		t.Fatal("the container has not ended after SIGTERM")
	}
}

// object is what this test reads of a Kubernetes object.
type object struct {
	Kind     string
	Metadata struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Data map[string]string
	Spec struct {
		Type     string
		Selector map[string]any
		Ports    []struct {
			Name       string
			Port       int
			TargetPort string `yaml:"targetPort"`
			NodePort   int    `yaml:"nodePort"`
		}
		Template struct {
			Metadata struct{ Labels, Annotations map[string]string }
			Spec     podSpec
		}
	}
}

type podSpec struct {
	TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
	SecurityContext               struct {
		RunAsUser  uint32 `yaml:"runAsUser"`
		RunAsGroup uint32 `yaml:"runAsGroup"`
		FSGroup    int    `yaml:"fsGroup"`
	} `yaml:"securityContext"`
	Containers []struct {
		Command, Args []string
		Env           []struct{ Name, Value string }
		Ports         []struct {
			Name          string
			ContainerPort int `yaml:"containerPort"`
		}
		ReadinessProbe  probe `yaml:"readinessProbe"`
		LivenessProbe   probe `yaml:"livenessProbe"`
		SecurityContext struct {
			ReadOnlyRootFilesystem bool `yaml:"readOnlyRootFilesystem"`
		} `yaml:"securityContext"`
		VolumeMounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	Volumes []struct {
		Name      string
		ConfigMap struct{ Name string } `yaml:"configMap"`
		Claim     struct {
			Name string `yaml:"claimName"`
		} `yaml:"persistentVolumeClaim"`
	}
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

func testKubernetesManifest(t *testing.T, binary string) {
	text, image := deployFile(t, "kubernetes.yaml"), readDockerfile(t)
	objects := map[string][]object{}
	for d := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		objects[o.Kind] = append(objects[o.Kind], o)
	}
	if len(objects["Deployment"]) != 1 || len(objects["ConfigMap"]) != 1 || len(objects["Service"]) == 0 || len(objects["PersistentVolumeClaim"]) != 1 {
		t.Fatalf("the manifest is not what this test knows: %v", objects)
	}
	deployment, configMap := objects["Deployment"][0], objects["ConfigMap"][0]
	pod := deployment.Spec.Template.Spec
	k := pod.Containers[0]
	if !k.SecurityContext.ReadOnlyRootFilesystem || pod.SecurityContext.RunAsUser == 0 {
		t.Fatal("want a read-only root and a user that is not root")
	}
	volumes := map[string]string{}
	for _, v := range pod.Volumes {
		at := ""
		for _, m := range k.VolumeMounts {
			if m.Name == v.Name {
				at = m.MountPath
			}
		}
		switch {
		case v.ConfigMap.Name == configMap.Metadata.Name:
			// The kubelet makes links to what it exchanges as a whole.
			dir := owned(t, 0, pod.SecurityContext.FSGroup, 0o755)
			err := os.Mkdir(filepath.Join(dir, "..2026"), 0o755)
			for name, content := range configMap.Data {
				err = errors.Join(err, os.WriteFile(filepath.Join(dir, "..2026", name), []byte(content), 0o644), os.Symlink("..data/"+name, filepath.Join(dir, name)))
			}
			if err = errors.Join(err, os.Symlink("..2026", filepath.Join(dir, "..data"))); err != nil {
				t.Fatal(err)
			}
			volumes[at] = dir
		case v.Claim.Name == objects["PersistentVolumeClaim"][0].Metadata.Name:
			// A new ext4 whose group the kubelet has set.
			dir := owned(t, 0, pod.SecurityContext.FSGroup, 0o775|os.ModeSetgid)
			if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
				t.Fatal(err)
			}
			volumes[at] = dir
		default:
			t.Fatalf("volume %s is of nothing in the manifest", v.Name)
		}
	}
	c := newContainer(t, binary, image.entrypoint[0], volumes)
	c.uid, c.gid = pod.SecurityContext.RunAsUser, pod.SecurityContext.RunAsGroup
	for _, e := range k.Env {
		c.env = append(c.env, e.Name+"="+e.Value)
	}
	if !slices.ContainsFunc(c.env, func(e string) bool { return strings.HasPrefix(e, "ENTREPOT_CONFIG=") }) {
		t.Error("ENTREPOT_CONFIG is not set: commands that kubectl exec runs have other settings than the service")
	}
	entrypoint := image.entrypoint
	if k.Command != nil {
		entrypoint = k.Command
	}
	p := c.start(t, slices.Concat(entrypoint, k.Args)...)

	ports := map[string]string{}
	for _, port := range k.Ports {
		ports[port.Name] = strconv.Itoa(port.ContainerPort)
	}
	ready := k.ReadinessProbe.HTTPGet
	p.until("the pod is ready", func() bool { status, _ := asks(t, ports[ready.Port], ready.Path, ""); return status == http.StatusOK })
	wantStatus200(t, ports[k.LivenessProbe.HTTPGet.Port], k.LivenessProbe.HTTPGet.Path, "")
	for _, s := range objects["Service"] {
		if s.Spec.Type != "" && s.Spec.Type != "ClusterIP" {
			t.Errorf("service %s is a %s, and nobody has to log in", s.Metadata.Name, s.Spec.Type)
		}
		for _, port := range s.Spec.Ports {
			at, known := ports[port.TargetPort]
			if !known || port.NodePort != 0 {
				t.Errorf("service %s: port %+v", s.Metadata.Name, port)
				continue
			}
			path := "/v2/"
			if port.TargetPort == "admin" {
				path = "/metrics"
			}
			// By the service's name, as pods ask.
			host := fmt.Sprintf("%s.%s.svc:%d", s.Metadata.Name, s.Metadata.Namespace, port.Port)
			wantStatus200(t, at, path, host)
		}
		for label, value := range s.Spec.Selector {
			if deployment.Spec.Template.Metadata.Labels[label] != value {
				t.Errorf("service %s selects no pod: %s: %v", s.Metadata.Name, label, value)
			}
		}
	}
	a := deployment.Spec.Template.Metadata.Annotations
	if a["prometheus.io/scrape"] != "true" {
		t.Error("Prometheus is not told to scrape the pod")
	}
	wantStatus200(t, a["prometheus.io/port"], a["prometheus.io/path"], "10.1.2.3:"+a["prometheus.io/port"]) // by the pod's address
	commands := regexp.MustCompile(`kubectl -n entrepot exec deploy/entrepot -- (/.*)`).FindAllStringSubmatch(text, -1)
	if len(commands) == 0 {
		t.Fatal("the manifest does not say how to run commands")
	}
	for _, m := range commands {
		c.exec(t, strings.Fields(m[1])...)
	}
	var running struct {
		ShutdownTimeout string `yaml:"shutdown_timeout"`
	}
	if err := yaml.Unmarshal([]byte(c.exec(t, "/entrepot", "config", "show")), &running); err != nil {
		t.Fatal(err)
	}
	timeout, err := time.ParseDuration(running.ShutdownTimeout)
	if err != nil {
		t.Fatal(err)
	}
	longerThan(t, "terminationGracePeriodSeconds", time.Duration(pod.TerminationGracePeriodSeconds)*time.Second, timeout)
	p.stop()
}

// testSystemdUnit does what the unit's first lines say, and starts its ExecStart.
func testSystemdUnit(t *testing.T, binary string) {
	text := deployFile(t, "entrepot.service")
	settings := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			settings[name] = value
		}
	}
	start := strings.Fields(settings["ExecStart"])
	reload := strings.Fields(settings["ExecReload"])
	if len(start) < 2 || !slices.Equal(reload, []string{"/bin/kill", "-HUP", "$MAINPID"}) || settings["DynamicUser"] != "yes" || settings["StateDirectory"] != "entrepot" {
		t.Fatalf("the unit is not what this test knows: %v", settings)
	}
	installed := regexp.MustCompile(`install -D -m 0644 (configs/\S+) (/etc/entrepot)/(\S+)`).FindStringSubmatch(text)
	command := regexp.MustCompile(`sudo entrepot (ls .*)`).FindStringSubmatch(text)
	if installed == nil || command == nil {
		t.Fatal("the unit does not say how to install the configuration and how to run commands")
	}
	if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
		unit := filepath.Join(t.TempDir(), "entrepot.service")
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(text, start[0], binary)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", unit).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("entrepot.service:")) {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
	const dynamic = 61184 // the first of the users that DynamicUser takes
	etc := owned(t, 0, 0, 0o755)
	reference, err := os.ReadFile(filepath.Join("..", installed[1]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, installed[3]), reference, 0o644); err != nil {
		t.Fatal(err)
	}
	c := newContainer(t, binary, start[0], map[string]string{installed[2]: etc, "/var/lib/entrepot": owned(t, dynamic, dynamic, 0o700)})
	c.uid, c.gid, c.env = dynamic, dynamic, []string{"STATE_DIRECTORY=/var/lib/entrepot", "PATH=/usr/local/bin"}
	p := c.start(t, start...)
	p.until("the service is ready", func() bool { status, _ := asks(t, "5000", "/v2/", ""); return status == http.StatusOK })
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.until("the service has read its configuration again", func() bool { return strings.Contains(p.String(), `"message":"the configuration has been read again"`) })
	root := *c
	root.uid, root.gid = 0, 0
	root.exec(t, append([]string{start[0]}, strings.Fields(command[1])...)...)
	stop, err := time.ParseDuration(settings["TimeoutStopSec"])
	if err != nil {
		t.Fatal(err)
	}
	longerThan(t, "TimeoutStopSec", stop, 30*time.Second)
	p.stop()
}

// testReadme runs the commands of README.md and docs/getting-started.md as they stand there, in turn, with registries that
// have its images.
func testReadme(t *testing.T, binary string) {
	if _, err := exec.LookPath("curl"); err != nil {
		cannot(t, "curl is not installed")
	}
	for _, dir := range []string{"/srv", "/var/lib"} { // where the commands write
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	docker, ghcr := hub.New(t, hub.Options{}), hub.New(t, hub.Options{Service: "ghcr.io"})
	layers := []image.Layer{{Size: 5000}}
	docker.Push("library/alpine", "3.20", image.Index(image.Options{Seed: 1, Layers: layers}))
	ghcr.Push("org/app", "latest", image.Index(image.Options{Seed: 2, Layers: layers}))
	config, err := yaml.Marshal(map[string]any{"upstreams": map[string]any{"docker.io": docker.Upstream(""), "ghcr.io": ghcr.Upstream("")}})
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	for name, text := range map[string]string{"upstreams.yml": string(config), "entrepot.yml": string(config), "images.txt": "alpine:3.20\nghcr.io/org/app:latest\n"} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shell := func(line string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", line)
		cmd.Dir = work
		cmd.Env = []string{"PATH=" + filepath.Dir(binary) + ":" + os.Getenv("PATH"), "HOME=" + work, "ENTREPOT_CONFIG=" + filepath.Join(work, "upstreams.yml")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	var text []byte
	for _, page := range []string{"../README.md", "../docs/getting-started.md"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	var running *service // until the next one
	end := func() {
		if running != nil {
			running.stop()
			running = nil
		}
	}
	ran := 0
	block := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		command := strings.TrimSpace(strings.Split(line, " #")[0])
		switch {
		case strings.HasPrefix(line, "```"):
			block = line == "```sh"
			continue
		case !block || strings.HasPrefix(line, "go test "):
			continue
		case strings.HasPrefix(line, "curl "):
			out, err := shell(command + " --fail").CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("3.20")) && !bytes.HasPrefix(out, []byte("HTTP/1.1 200 ")) {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		case command == "go run ./cmd/proxy", command == "entrepot serve --offline", strings.HasSuffix(command, " entrepot"), command == "entrepot --config entrepot.yml":
			end()
			running = &service{t: t, cmd: shell("exec " + strings.Replace(command, "go run ./cmd/proxy", "entrepot", 1)), ended: make(chan error, 1)}
			if name, value, ok := strings.Cut(strings.TrimSuffix(command, " entrepot"), "="); ok {
				running.cmd = shell("exec entrepot")
				running.cmd.Env = append(running.cmd.Env, name+"="+value)
			}
			running.cmd.Stdout, running.cmd.Stderr = running, running
			if err := running.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func(s *service) { s.ended <- s.cmd.Wait() }(running) // ends with the process
			started := running.cmd.Process
			t.Cleanup(func() { _ = started.Kill() })
			running.until(command+" is ready", func() bool { status, _ := asks(t, "5000", "/v2/", ""); return status == http.StatusOK })
			if strings.HasPrefix(command, "ENTREPOT_CACHE_DIR=/srv/cache ") {
				if _, err := os.Stat("/srv/cache/blobs"); err != nil {
					t.Errorf("%s: %v", command, err)
				}
			}
		default:
			if strings.Contains(command, "import") || strings.Contains(command, "warm") {
				end() // the next commands are another machine's
			}
			if out, err := shell(command).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		}
		ran++
	}
	end()
	if ran < 10 {
		t.Errorf("only %d commands were found", ran)
	}
}
