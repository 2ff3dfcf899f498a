{{/* What the pods have in common. */}}

{{/* Metadata of a pod; takes (list root component), and optionally more annotations. */}}
{{- define "amo.podMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "amo.selector" . | nindent 2 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (ternary (last .) dict (gt (len .) 2)) $root.Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fields of a pod's spec; takes (list root component), and optionally more security. */}}
{{- define "amo.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $security := deepCopy $root.Values.podSecurityContext -}}
{{- if gt (len .) 2 }}{{ $security = merge (deepCopy (index . 2)) $security }}{{ end -}}
enableServiceLinks: false
securityContext:
  {{- toYaml $security | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if has $component (list "service" "worker" "pgbouncer") }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "amo.selector" (list $root $component) | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{/* Neither rights nor a token. */}}
{{- define "amo.noRights" -}}
serviceAccountName: {{ include "amo.fullname" . }}
automountServiceAccountToken: false
{{- end -}}

{{/* The database, and the pooler before it. */}}
{{- define "amo.databaseEnv" -}}
- name: DB_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "amo.databaseSecret" . }}
      key: {{ include "amo.databaseKey" . }}
{{- if .Values.pgbouncer.enabled }}
- name: DB_POOLER
  value: {{ include "amo.fullname" . }}-pgbouncer:6432
{{- end }}
{{- end -}}

{{/* Where traces and metrics go; takes (list root pod), pod: whether its name belongs to them. */}}
{{- define "amo.otelEnv" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.otel.endpoint -}}
{{- if index $ 1 }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- with $root.Values.otel.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: headers
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.namespace.name=%s%s%s" $root.Release.Namespace (ternary ",k8s.pod.name=$(POD_NAME)" "" (index $ 1)) (ternary (printf ",%s" $root.Values.otel.resourceAttributes) "" (not (empty $root.Values.otel.resourceAttributes))) | quote }}
{{- end }}
{{- end -}}

{{/* Environment of service and worker. */}}
{{- define "amo.serviceEnv" -}}
{{ include "amo.databaseEnv" . }}
- name: AMOCRM_KEYRING_DIR
  value: /var/run/amo-webhooks/keyring
- name: SECRET_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "amo.appSecret" . }}
      key: secret_key
- name: JWT_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ include "amo.appSecret" . }}
      key: jwt_secret
- name: MANAGEMENT_PORT
  value: "9000"
- name: MANAGEMENT_HOST
  value: {{ .Values.listenAddress | quote }}
- name: WORKER_ENABLED
  value: {{ not .Values.worker.enabled | quote }}
{{- if .Values.mapping }}
- name: MAPPING_FILE
  value: /etc/amo-webhooks/mapping/mapping.toml
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ include "amo.plain" $value | quote }}
{{- end }}
{{- include "amo.otelEnv" (list . true) }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A value as text: Helm reads whole numbers as floats, which would be written 1e+06. */}}
{{- define "amo.plain" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ printf "%.0f" . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Container fields of service and worker: what they mount, how they are probed. */}}
{{- define "amo.serviceContainer" -}}
image: {{ include "amo.serviceImage" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
env:
  {{- include "amo.serviceEnv" . | nindent 2 }}
{{- with .Values.envFromSecrets }}
envFrom:
  {{- range . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end }}
startupProbe:
  httpGet: {path: /livez, port: management}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: management}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: management}
  periodSeconds: 2
  timeoutSeconds: 2
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: keyring
    mountPath: /var/run/amo-webhooks/keyring
    readOnly: true
  {{- if .Values.mapping }}
  - name: mapping
    mountPath: /etc/amo-webhooks/mapping
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "amo.serviceVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
- name: keyring
  secret:
    secretName: {{ include "amo.keyringSecret" . }}
    # The operator writes it after the pods have begun, and makes their kubelets look again.
    optional: {{ .Values.operator.enabled }}
{{- if .Values.mapping }}
- name: mapping
  configMap:
    name: {{ include "amo.fullname" . }}-mapping
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* At most one pod of a component goes at a time; takes (list root component). */}}
{{- define "amo.budget" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.podDisruptionBudget.enabled }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "amo.fullname" $root }}-{{ index . 1 }}
  labels:
    {{- include "amo.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "amo.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
